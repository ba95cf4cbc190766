"""What is measured: which file system, with which mount options, and how its command is written.

Owns the spelling of `--subject` and the mount command of each kind. Every subject but the plain
directory is driven by its command line alone.
"""

import os
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import commands
from benchmarks.errors import CannotMeasure, UserError
from benchmarks.results import Subject

PLAIN, KERNEL, PROGRAM, STORE = "plain", "kernel", "program", "store"

# Programs that keep images and mount nothing: only rows about stores take them.
STORES = ("skopeo", "umoci")

# What `--subject` may be left out for. The plain directory is the floor and the baseline.
QUICK = ("plain", "kernel", "fuse-overlayfs", "ours")
FULL = (*QUICK, "ours,transport=pyfuse3", "ours,poll_us=0", "ours,timeout=0", *STORES)

SPELLING = "[LABEL=]plain|kernel|ours|skopeo|umoci|PROGRAM[,MOUNT OPTION...]"


@dataclass(frozen=True, slots=True)
class Spec:
    """A subject as asked for; `program` is empty for the kernel and the plain directory."""

    label: str
    kind: str
    program: str
    options: tuple[str, ...]
    lookup_delay_ns: int = 0

    def mount_command(
        self, lowers: list[str], upper: Path | None, work: Path, mountpoint: Path
    ) -> list[str]:
        """The command that mounts `lowers` (top first, relative to where it is run).

        Without `upper` the mount is read-only.
        """
        words = [f"lowerdir={':'.join(lowers)}"]
        if upper is not None:
            words += [f"upperdir={upper}", f"workdir={work}"]
        joined = ",".join([*words, *self.options])
        if self.kind == KERNEL:
            return ["mount", "-t", "overlay", "overlay", "-o", joined, str(mountpoint)]
        return [self.program, "-o", joined, str(mountpoint)]

    def describe(self, command: list[str]) -> Subject:
        """What the results say about it."""
        return Subject(
            self.label,
            self.kind,
            self._version(),
            list(self.options),
            command,
            self.lookup_delay_ns,
        )

    def _version(self) -> str:
        if self.kind in (PLAIN, KERNEL):
            return f"Linux {os.uname().release}"
        try:
            finished = commands.run([self.program, "--version"], timeout_s=20)
        except CannotMeasure as reason:
            return str(reason)
        text = (finished.output.decode(errors="replace") + finished.errors).strip()
        lines = [line for line in text.splitlines() if Path(self.program).name in line]
        return (lines or text.splitlines() or ["unknown"])[0]


def parse(text: str) -> Spec:
    """One `--subject`. Raises UserError where its spelling is wrong; looks for no program."""
    match = re.fullmatch(r"(?:([A-Za-z0-9._+#-]+)=)?([^,]+)((?:,[^,]+)*)", text)
    if match is None:
        raise UserError(f"--subject {text}: expected {SPELLING}")
    label, what, rest = match[1], match[2], tuple(match[3].split(",")[1:])
    if what in (PLAIN, *STORES) and rest:
        raise UserError(f"--subject {text}: {what} takes no mount options")
    name = Path(what).name
    kind = what if what in (PLAIN, KERNEL) else STORE if name in STORES else PROGRAM
    program = "" if kind in (PLAIN, KERNEL) else what
    return Spec(label or ",".join([name, *rest]), kind, program, rest)


def distinct(specs: list[Spec]) -> list[Spec]:
    """The same with a number behind each label that came before: plain, plain#2."""
    seen: dict[str, int] = {}
    result = []
    for spec in specs:
        seen[spec.label] = count = seen.get(spec.label, 0) + 1
        result.append(spec if count == 1 else replace(spec, label=f"{spec.label}#{count}"))
    return result


def with_delay(specs: list[Spec], text: str) -> list[Spec]:
    """Gives the subject named in `LABEL:lookup=MICROSECONDS` that delay. Raises UserError."""
    match = re.fullmatch(r"(.+):lookup=(\d+(?:\.\d+)?)", text)
    if match is None:
        raise UserError(f"--delay {text}: expected LABEL:lookup=MICROSECONDS")
    if match[1] not in [spec.label for spec in specs]:
        raise UserError(f"--delay {text}: no subject is labelled {match[1]!r}")
    delay_ns = round(float(match[2]) * 1000)
    return [
        replace(spec, lookup_delay_ns=delay_ns) if spec.label == match[1] else spec
        for spec in specs
    ]


def locate(spec: Spec) -> Spec:
    """The same with its program's full path. Raises CannotMeasure where there is none.

    `ours` is the overlayfs-py installed beside this Python, else the one in PATH.
    """
    if spec.kind == KERNEL and os.geteuid() != 0:
        raise CannotMeasure("mounting the kernel's overlayfs needs root")
    if spec.kind in (PLAIN, KERNEL):
        return spec
    if spec.program == "ours":
        beside = Path(sys.executable).with_name("overlayfs-py")
        found = str(beside) if beside.exists() else shutil.which("overlayfs-py")
        missing = "overlayfs-py is not installed beside this Python and not in PATH"
    else:
        found = shutil.which(spec.program)
        missing = f"{spec.program}: no such program"
    if found is None:
        raise CannotMeasure(missing)
    return replace(spec, program=os.path.abspath(found))
