"""Compiling a small C program inside the mount: sources and headers in a lower layer, objects and the
binary in the upper, and the compiler's search for headers that are not where it looks first.
"""

import shutil

from benchmarks.arena import Arena
from benchmarks.errors import CannotMeasure
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload

SOURCES = 20
HEADERS = 40

SCRIPT = """set -e
for c in s*.c; do cc -c -O0 -Iempty1 -Iempty2 -Iinclude "$c" -o "${c%.c}.o"; done
cc -o program s*.o
./program
"""


def lay(site: Site, parameters: Parameters) -> list[str]:
    """Sources that each include every header."""
    if shutil.which("cc") is None:
        raise CannotMeasure("cc is not installed")
    layer = site.layer("0")
    for directory in ("include", "empty1", "empty2"):
        (layer / directory).mkdir()
    for number in range(HEADERS):
        text = "".join(
            f"static inline int h{number}_{i}(int x) {{ return x + {i}; }}\n" for i in range(20)
        )
        (layer / f"include/h{number}.h").write_text(text)
    includes = "".join(f'#include "h{number}.h"\n' for number in range(HEADERS))
    for number in range(1, SOURCES):
        body = f"int f{number}(int x) {{ return h{number % HEADERS}_1(x); }}\n"
        (layer / f"s{number}.c").write_text(includes + body)
    (layer / "s0.c").write_text("int main(void) { return 0; }\n")
    (layer / "build.sh").write_text(SCRIPT)
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """The build, as one command."""
    return {"": arena.command(["sh", "build.sh"])}


WORKLOAD = Workload(
    name="c-build",
    family="Real work",
    title="compile 20 C files",
    parts={"": MILLISECONDS},
    variants=(Variant({}, ("disk",), seconds=1.5),),
    lay=lay,
    measure=measure,
)
