"""Shows how a run gets on: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from benchmarks.report import words

LINE_EVERY_S = 60.0  # where there is no terminal


class Progress:
    """A `runner.Watcher` for people; writes to standard error."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._console = Console(stderr=True, highlight=False)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._began = self._said = time.monotonic()
        self._samples, self._taken = 0, 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def begin(self, samples: int) -> None:
        """So many samples are about to be taken."""
        self._bar.update(self._task, total=samples)
        self._samples = samples
        self._began = self._said = time.monotonic()

    def sample(self, round_number: int, row: str, subject: str) -> None:
        """This sample is about to be taken."""
        where = f"round {round_number + 1} of {self._rounds}: {row} of {subject}"
        self._bar.update(self._task, description=where, completed=self._taken)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > LINE_EVERY_S:
            self._said = now
            self.note(f"{self._taken} of {self._samples} samples; {where}")
        self._taken += 1

    def note(self, text: str) -> None:
        """One line that the user should see."""
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def round_done(self, round_number: int) -> None:
        """All samples of a round (from 0) were taken."""
        spent = time.monotonic() - self._began
        left = spent / (round_number + 1) * (self._rounds - round_number - 1)
        if left > 0 and (round_number == 0 or not self._console.is_terminal):
            self.note(
                f"round {round_number + 1} of {self._rounds} done, "
                f"about {words.duration(left)} to go"
            )
