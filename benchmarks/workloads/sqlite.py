"""SQLite at its safest: a database in a lower layer, copied up by the first transaction, then 100
transactions with a rollback journal and fsync(2), and one query over the table. In a process of its own.
"""

import sqlite3
import sys

from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload

ROWS = 20_000
TRANSACTIONS = 100

PROGRAM = f"""
import sqlite3
db = sqlite3.connect("data.db", isolation_level=None)
db.execute("pragma synchronous=full")
for i in range({TRANSACTIONS}):
    db.execute("begin")
    for j in range(10):
        db.execute("update t set value = value + 1 where id = ?", ((i * 7919 + j * 104729) % {ROWS},))
    db.execute("insert into t(value, text) values (?, ?)", (i, "x" * 100))
    db.execute("commit")
assert db.execute("select count(*), sum(value) from t").fetchone()[0] == {ROWS + TRANSACTIONS}
db.close()
"""


def lay(site: Site, parameters: Parameters) -> list[str]:
    """A table of some 2.5 MB."""
    database = sqlite3.connect(site.layer("0") / "data.db")
    database.execute("create table t (id integer primary key, value integer, text text)")
    rows = ((number, number, "x" * 100) for number in range(ROWS))
    database.executemany("insert into t values (?, ?, ?)", rows)
    database.commit()
    database.close()
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """The program, as a command."""
    return {"": arena.command([sys.executable, "-I", "-S", "-c", PROGRAM])}


WORKLOAD = Workload(
    name="sqlite",
    family="Real work",
    title="SQLite, 100 transactions",
    parts={"": MILLISECONDS},
    variants=(Variant({}, quick=("tmpfs",), seconds=0.8),),
    lay=lay,
    measure=measure,
)
