"""`tools/conformance`: a public conformance suite, run in a mount of each subject in turn, counted side by side.

The suite is any command; it runs with a writable directory of the mount, which comes from the lower layer, as its
working directory (also in $MNT). What it prints in TAP ("ok", "not ok", with "TODO" for known failures) is counted; the
failures that the kernel's overlayfs does not have are shown.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.mounted.subject import SUBJECTS

_RESULT = re.compile(rb"^(not ok|ok)\b([^\n]*)", re.MULTILINE)


@dataclass
class Counts:
    """What one run of the suite printed."""

    passed: int = 0
    todo: int = 0
    status: int = 0
    failures: Counter[bytes] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return self.failures.total()


def count(output: bytes, status: int) -> Counts:
    """Count the TAP results in the output of a suite that ended with `status`."""
    counts = Counts(status=status)
    for verdict, rest in _RESULT.findall(output):
        if verdict == b"ok":
            counts.passed += 1
        elif b"TODO" in rest:
            counts.todo += 1
        else:
            counts.failures[rest.strip()] += 1
    return counts


def run(subject_name: str, command: list[str], log: Path) -> Counts:
    """Run the suite on a fresh mount; its output goes to `log`."""
    with tempfile.TemporaryDirectory(prefix="overlayfs-py-conformance-") as scratch:
        directory = Path(scratch)
        directory.chmod(0o755)
        subject = SUBJECTS[subject_name](directory)
        (subject.lower / "work").mkdir()
        (subject.lower / "work").chmod(0o777)
        subject.start()
        try:
            here = subject.mountpoint / "work"
            with log.open("wb") as output:
                status = subprocess.run(
                    command,
                    cwd=here,
                    env={**os.environ, "MNT": str(here)},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    check=False,
                ).returncode
        finally:
            subject.stop()
    return count(log.read_bytes(), status)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/conformance", description=__doc__)
    parser.add_argument("--subject", action="append", choices=sorted(SUBJECTS))
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the suite and its arguments")
    chosen = parser.parse_args(arguments)
    command = chosen.command[1:] if chosen.command[:1] == ["--"] else chosen.command
    if not command:
        parser.error("say which suite, for example: prove -r /path/to/pjdfstest/tests")
    names = list(dict.fromkeys(["kernel", *(chosen.subject or ["device"])]))
    logs = Path(tempfile.mkdtemp(prefix="overlayfs-py-conformance-logs-"))
    results = {name: run(name, command, logs / name) for name in names}
    for name, counts in results.items():
        print(
            f"{name:10} {counts.passed:6} ok {counts.failed:6} failed {counts.todo:6} todo, "
            f"status {counts.status}, output in {logs / name}"
        )
    worse = False
    for name in names[1:]:
        for failure, times in (results[name].failures - results["kernel"].failures).items():
            worse = True
            print(f"{name} alone fails {times} x {failure.decode(errors='replace')}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
