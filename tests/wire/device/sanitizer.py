"""The lane built with the compiler's sanitizers, and a Python that takes it instead of the installed one."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

LANE = "overlayfs_py.wire.lane.lane"
_PLACE = "OVERLAYFS_PY_FUZZED_LANE"
_FLAGS = [
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    *("-fno-omit-frame-pointer", "-g", "-O1", "-shared", "-fPIC", "-w"),
    *("-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64"),
]


def build(directory: str) -> dict[str, str]:
    """Compile the lane into `directory`; the environment of a Python that `use`s it.

    Raises CalledProcessError where Cython or the compiler fails, which say why themselves.
    """
    top = Path(__file__).parents[3]
    source, module = os.path.join(directory, "lane.c"), os.path.join(directory, "lane.so")
    pyx = top.joinpath(*LANE.split(".")).with_suffix(".pyx")
    subprocess.run([sys.executable, "-m", "cython", "-3", str(pyx), "-o", source], check=True)
    include = sysconfig.get_path("include")
    compiler = os.environ.get("CC", "gcc")
    argv = [compiler, *_FLAGS, f"-I{include}", source, "-o", module, "-lpthread"]
    subprocess.run(argv, check=True)
    runtime = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    return {
        _PLACE: module,
        "LD_PRELOAD": runtime,
        # The interpreter itself keeps much until its end.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }


def use() -> None:
    """Take the lane that the environment names, if it names one, before anybody imports the other."""
    place = os.environ.get(_PLACE)
    if place is None:
        return
    loader = importlib.machinery.ExtensionFileLoader(LANE, place)
    spec = importlib.util.spec_from_file_location(LANE, place, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    sys.modules[LANE] = module
