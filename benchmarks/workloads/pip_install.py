"""`pip install` of a wheel of some 300 modules, compiled to bytecode as pip does: an image build's
favourite step. The wheel is made from the standard library; nothing is fetched.
"""

import base64
import hashlib
import importlib.util
import sys
import sysconfig
import zipfile
from pathlib import Path

from benchmarks.arena import Arena
from benchmarks.errors import CannotMeasure
from benchmarks.forge import Site
from benchmarks.workload import MILLISECONDS, Measurement, Parameters, Variant, Workload
from benchmarks.workloads import untar

MODULES = 300
WHEEL = "benchmark_modules-1-py3-none-any.whl"


def lay(site: Site, parameters: Parameters) -> list[str]:
    """The wheel lies in the lower layer, and so does the directory it is installed into."""
    if importlib.util.find_spec("pip") is None:
        raise CannotMeasure(f"{sys.executable} has no pip")
    layer = site.layer("0")
    (layer / "site").mkdir()
    make_wheel(layer / WHEEL)
    return ["0"]


def make_wheel(path: Path) -> None:
    """Writes a wheel (PEP 427) of renamed standard modules."""
    library = Path(sysconfig.get_paths()["stdlib"])
    information = "benchmark_modules-1.dist-info"
    files = {"benchmark_modules/__init__.py": b""}
    for number, module in enumerate(untar.source_files()[:MODULES]):
        files[f"benchmark_modules/p{number % 20}/m{number}.py"] = (library / module).read_bytes()
    files[f"{information}/WHEEL"] = (
        b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{information}/METADATA"] = (
        b"Metadata-Version: 2.1\nName: benchmark-modules\nVersion: 1\n"
    )
    record = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}\n")
    record.append(f"{information}/RECORD,,\n")
    files[f"{information}/RECORD"] = "".join(record).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)


def measure(arena: Arena, parameters: Parameters) -> dict[str, Measurement]:
    """pip install --target, as a command."""
    argv = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    argv += ["--no-cache-dir", "--disable-pip-version-check", "--root-user-action=ignore"]
    argv += ["--target", "site", WHEEL]
    environment = {"TMPDIR": str(arena.place), "PIP_CONFIG_FILE": "/dev/null"}
    return {"": arena.command(argv, environment=environment)}


WORKLOAD = Workload(
    name="pip-install",
    family="Real work",
    title="pip install of 300 modules",
    parts={"": MILLISECONDS},
    variants=(Variant({}, ("disk",), seconds=6.0),),
    lay=lay,
    measure=measure,
)
