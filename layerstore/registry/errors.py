"""What can go wrong with a registry. Messages name the host, and never a credential."""

from __future__ import annotations

from layerstore.errors import StoreError


class RegistryError(StoreError):
    """A registry that cannot be reached, refuses, or answers what it should not."""


class NotThere(RegistryError):
    """A registry without this repository, tag or blob."""


class Denied(RegistryError):
    """A registry that wants other credentials, or any."""


class Interruption(Exception):
    """A failure that may pass: the request is worth repeating.

    Args:
        error: what to raise when patience ends.
        wait_s: how long the registry asked to be left alone, in seconds.
        attempts_max: repeat it at most so often in all, None for as often as usual.
    """

    def __init__(
        self, error: RegistryError, wait_s: float | None = None, attempts_max: int | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s
        self.attempts_max = attempts_max
