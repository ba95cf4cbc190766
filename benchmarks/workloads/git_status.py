"""`git status` in a repository that lies in a lower layer: every developer, every few seconds.

git looks at the attributes of each tracked file and lists each directory. It is told to compare
sizes and times only, since a union may give other inode numbers than the layer below.
"""

import tarfile

from benchmarks import commands
from benchmarks.arena import Arena
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload
from benchmarks.workloads import untar

ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "benchmark",
    "GIT_AUTHOR_EMAIL": "benchmark@localhost",
    "GIT_COMMITTER_NAME": "benchmark",
    "GIT_COMMITTER_EMAIL": "benchmark@localhost",
}
GIT = ["git", "-c", "core.checkStat=minimal", "-c", "core.trustctime=false", "-c", "gc.auto=0"]


def lay(site: Site, parameters: Parameters) -> list[str]:
    """A repository with the source tree committed."""
    layer = site.layer("0")
    untar.pack(layer / "source.tar")
    with tarfile.open(layer / "source.tar") as tar:
        tar.extractall(layer, filter="data")
    (layer / "source.tar").unlink()
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "source"]):
        commands.must(commands.run([*GIT, *words], cwd=layer, environment=ENVIRONMENT))
    return ["0"]


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """git status, as a command, with cold names."""
    arena.drop_caches()
    argv = [*GIT, "-c", f"safe.directory={arena.root}", "status", "--porcelain"]
    return {"": arena.command(argv, environment=ENVIRONMENT)}


WORKLOAD = Workload(
    name="git-status",
    family="Real work",
    title="git status, cold",
    parts={"": MILLISECONDS},
    variants=(Variant({}, seconds=0.4),),
    lay=lay,
    measure=measure,
)
