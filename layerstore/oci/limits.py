"""How much an image may ask of whoever imports it. Plain data and pure functions."""

from __future__ import annotations

from dataclasses import dataclass

from layerstore.errors import SourceInvalid

_RATIO_FREE = 1 << 30
"""So many plain bytes may come out of whatever little: log files and empty databases do that."""


@dataclass(slots=True, frozen=True)
class Limits:
    """Limits for each layer; 0: none.

    `layer_bytes`: of its plain tar, and of its sparse files with their holes. `entries`: of its tar.
    `ratio`: of plain to compressed bytes, above 1 GiB. gzip can make a thousand bytes out of one, zstd
    twenty thousand; what people keep in layers is under 20 to 1.
    """

    layer_bytes: int = 64 << 30
    entries: int = 1_000_000
    ratio: int = 200

    def check_plain(self, plain: int, packed: int, label: str) -> None:
        """Compare what came out of a compressed stream so far with what went in.

        Args:
            plain: bytes that came out.
            packed: bytes that went in.
            label: what it is called in messages.

        Raises:
            SourceInvalid: it is too much.
        """
        if 0 < self.layer_bytes < plain:
            raise SourceInvalid(
                f"{label}: more than {self.layer_bytes} bytes come out of it: a decompression bomb?"
                " --max-layer-size allows more"
            )
        self.check_ratio(plain, packed, label)

    def check_ratio(self, plain: int, packed: int, label: str) -> None:
        """Likewise, only as to their ratio."""
        if plain > _RATIO_FREE and 0 < self.ratio * packed < plain:
            raise SourceInvalid(
                f"{label}: byte {packed}: {plain} bytes came out so far, more than {self.ratio} for"
                " each: a decompression bomb? --max-ratio allows more"
            )

    def check_entries(self, entries: int, label: str) -> None:
        """Compare the number of entries of a layer so far.

        Raises:
            SourceInvalid: they are too many.
        """
        if 0 < self.entries < entries:
            raise SourceInvalid(
                f"{label}: more than {self.entries} entries; --max-entries allows more"
            )


DEFAULT_LIMITS = Limits()
NO_LIMITS = Limits(0, 0, 0)
