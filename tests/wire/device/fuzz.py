"""`tools/fuzz wire`: arbitrary, damaged and truncated requests to a session over real unions, without a mount.

Each request that is to be answered gets exactly one whole reply with an errno that makes sense, no other gets any,
and nothing is logged as a bug. The lane answers first, built with the compiler's address and undefined-behaviour
sanitizers unless `--plain` is given; `--pure` leaves the lane out.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from overlayfs_py.wire.device.protocol import IN_HEADER, NO_REPLY, READ_IN, Opcode
from tests.wire.device import sanitizer, unions
from tests.wire.device.arbitrary import Requests
from tests.wire.device.desk import Reply
from tests.wire.device.line import Line

BATCH = 32
"""Requests that are put in before their replies are waited for."""
PER_UNION = 6000
"""Requests to one union; the next has fresh directories."""
CALM = 0.9
"""Share of the batches that change nothing: what was changed is Python's from then on."""
ANSWER_WITHIN_S = 30.0
PROGRESS_EVERY_S = 60.0
_WITH_A_SIZE = (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS)

# The requests' own fault.
_NOT_A_BUG = (
    "malformed request",
    "the kernel named",
    "forget of node",
    "no header",
    "copy-up leaves out",
    "[Errno 9]",
)


@dataclass
class Tally:
    """What came of the requests so far: `wrong` are the answers, silences and log lines that should not be."""

    inputs: int = 0
    answers: int = 0
    by_lane: int = 0
    unanswered: int = 0
    wrong: list[str] = field(default_factory=list)


class Bugs(logging.Handler):
    """Keeps in `found` what is logged at WARNING and above, but for what has one of the `excused` words."""

    def __init__(self, found: list[str], excused: Sequence[str]) -> None:
        super().__init__(logging.WARNING)
        self.found = found
        self.excused = excused

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info or not any(words in text for words in self.excused):
            self.found.append(logging.Formatter("%(levelname)s %(message)s").format(record))


class Fuzzer:
    """Puts requests into one line, and judges what comes back."""

    def __init__(self, line: Line, requests: Requests, tally: Tally) -> None:
        self.line = line
        self.requests = requests
        self.tally = tally

    def batch(self, count: int) -> None:
        due: dict[int, bytes] = {}
        self.requests.calm = self.requests.chance.random() < CALM
        for _ in range(count):
            raw = self.requests.request()
            if is_answered(raw):
                due[IN_HEADER.unpack_from(raw)[2]] = raw
            self.line.put(raw)
        self.tally.inputs += count
        while due and not self.tally.wrong:
            reply = self.line.reply(ANSWER_WITHIN_S)
            if reply is None:
                self.tally.unanswered += len(due)
                self._wrong("no answer", next(iter(due.values())))
            elif reply.unique:
                self._judge(due.pop(reply.unique, None), reply)
        if not self.tally.wrong and (late := self.line.reply(0)) is not None and late.unique:
            self._judge(None, late)
        if self.line.ended:
            self.tally.wrong.append("the reader gave up")

    def _judge(self, raw: bytes | None, reply: Reply) -> None:
        if raw is None:
            self.tally.wrong.append(f"an answer to nothing that was asked: {reply}")
            return
        self.tally.answers += 1
        opcode, body = IN_HEADER.unpack_from(raw)[1], raw[IN_HEADER.size :]
        if not 0 <= reply.error < 512:
            self._wrong(f"error {reply.error}", raw)
        elif reply.error and reply.body:
            self._wrong(f"{os.strerror(reply.error)} and a body", raw)
        elif reply.error:
            pass
        elif opcode in _WITH_A_SIZE and len(reply.body) > READ_IN.unpack_from(body)[2]:
            self._wrong(f"{len(reply.body)} bytes, more than were asked for", raw)
        else:
            self.requests.learn(opcode, reply.body)

    def _wrong(self, what: str, raw: bytes) -> None:
        self.tally.wrong.append(f"{what}: opcode {IN_HEADER.unpack_from(raw)[1]}: {raw[:200]!r}")


def is_answered(raw: bytes) -> bool:
    """Whether a request must have an answer. One of number 0 is a notification's, and not judged."""
    if len(raw) < IN_HEADER.size:
        return False
    _, opcode, unique, *_ = IN_HEADER.unpack_from(raw)
    return bool(unique) and opcode not in NO_REPLY


def run(inputs: int, seed: int, directory: str, *, laned: bool = True) -> Iterator[Tally]:
    """Put in so many requests; the tally after each union, and the last one with what went wrong."""
    tally = Tally()
    chance = random.Random(seed)
    kinds = itertools.cycle(unions.KINDS)
    with _listening(tally):
        while tally.inputs < inputs and not tally.wrong:
            with (
                tempfile.TemporaryDirectory(dir=directory) as home,
                unions.union(next(kinds), home) as overlay,
            ):
                end = min(inputs, tally.inputs + PER_UNION)
                _one_union(Line(overlay, laned=laned), chance.getrandbits(64), end, tally)
            yield tally


def _one_union(line: Line, seed: int, end: int, tally: Tally) -> None:
    fuzzer = Fuzzer(line, Requests(seed), tally)
    try:
        while tally.inputs < end and not tally.wrong:
            fuzzer.batch(min(BATCH, end - tally.inputs))
    finally:
        if line.laned is not None:
            tally.by_lane += line.laned.lane.answered
        line.close()


@contextmanager
def _listening(tally: Tally) -> Iterator[None]:
    bugs = Bugs(tally.wrong, _NOT_A_BUG)
    logger = logging.getLogger("overlayfs_py")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(bugs)
    # Files stay open that no request closes.
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        logger.removeHandler(bugs)
        logger.propagate = propagate


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/fuzz wire", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many requests in all")
    parser.add_argument("--seed", type=int, help="of the first process; the others count up")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default %(default)s)")
    parser.add_argument(
        "--directory",
        default=tempfile.gettempdir(),
        help="where the unions lie (default %(default)s)",
    )
    without = parser.add_mutually_exclusive_group()
    without.add_argument("--plain", action="store_true", help="the lane as it is installed")
    without.add_argument("--pure", action="store_true", help="no lane: Python answers everything")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.worker:
        return _work(chosen)
    if chosen.seed is None:
        chosen.seed = random.SystemRandom().getrandbits(32)
    with tempfile.TemporaryDirectory() as built:
        return _watch(chosen, built)


def _work(chosen: argparse.Namespace) -> int:
    """One process: a line of JSON after each union."""
    sanitizer.use()
    for tally in run(chosen.inputs, chosen.seed, chosen.directory, laned=not chosen.pure):
        print(msgspec.json.encode(tally).decode(), flush=True)
    return bool(tally.wrong)


def _watch(chosen: argparse.Namespace, built: str) -> int:
    sanitized = not (chosen.plain or chosen.pure)
    environment = sanitizer.build(built) if sanitized else {}
    shares = [chosen.inputs // chosen.jobs] * chosen.jobs
    shares[0] += chosen.inputs % chosen.jobs
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=chosen.directory) as home:
        workers = [
            _start(chosen, share, chosen.seed + number, home, environment)
            for number, share in enumerate(shares)
        ]
        try:
            tallies = _follow(workers)
        except BaseException:
            for worker in workers:
                worker.kill()
                worker.wait()
            raise
    return _report(chosen, workers, tallies, sanitized, time.monotonic() - began)


def _start(
    chosen: argparse.Namespace, share: int, seed: int, home: str, environment: dict[str, str]
) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "tests.wire.device.fuzz", "--worker", "--inputs", str(share)]
    argv += ["--seed", str(seed), "--directory", home, *(["--pure"] if chosen.pure else [])]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def _follow(workers: list[subprocess.Popen[str]]) -> list[Tally]:
    """The last tally of each worker, when all have ended, the others because one found something."""
    tallies = [Tally() for _ in workers]

    def listen(number: int) -> None:
        stream = workers[number].stdout
        assert stream is not None
        with stream:
            for text in stream:
                tallies[number] = msgspec.json.decode(text, type=Tally)

    threads = [threading.Thread(target=listen, args=(number,)) for number in range(len(workers))]
    for thread in threads:
        thread.start()
    said = time.monotonic()
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.2)
        if any(worker.poll() for worker in workers):
            for worker in workers:
                worker.terminate()
        if time.monotonic() - said > PROGRESS_EVERY_S:
            said = time.monotonic()
            print(f"{sum(tally.inputs for tally in tallies)} requests so far", flush=True)
    for thread in threads:
        thread.join()
    return tallies


def _report(
    chosen: argparse.Namespace,
    workers: list[subprocess.Popen[str]],
    tallies: list[Tally],
    sanitized: bool,
    took_s: float,
) -> int:
    crashes = 0
    for number, (worker, tally) in enumerate(zip(workers, tallies, strict=True)):
        ended = worker.returncode == -signal.SIGTERM  # by us, since another found something
        if worker.returncode and not ended:
            crashes += not tally.wrong
            print(f"seed {chosen.seed + number}, after {tally.inputs} requests:")
            print("\n".join(tally.wrong) or f"the process ended with status {worker.returncode}")
    lane = "no lane" if chosen.pure else "lane with sanitizers" if sanitized else "lane"
    print(
        f"{sum(tally.inputs for tally in tallies)} requests in {took_s:.0f} s (seed {chosen.seed}, {lane}): "
        f"{sum(tally.answers for tally in tallies)} answers, "
        f"{sum(tally.by_lane for tally in tallies)} requests done by the lane; "
        f"{crashes} crashes, {sum(tally.unanswered for tally in tallies)} unanswered, "
        f"{sum(len(tally.wrong) for tally in tallies)} wrong"
    )
    return int(any(worker.returncode for worker in workers))


if __name__ == "__main__":
    sys.exit(main())
