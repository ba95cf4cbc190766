"""The history of an image: what its config tells of each step, and the layer that came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from layerstore.refs import LayerRow
from layerstore.store import Image


@dataclass(slots=True, frozen=True)
class Step:
    """`layer`: what the step added, None where it added none (a change of the config). The texts are as
    the config has them, empty where it says nothing. `created` is a time as RFC 3339 has it."""

    layer: LayerRow | None
    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""

    @property
    def size(self) -> int:
        """Bytes of the files in the layer, before deduplication."""
        return 0 if self.layer is None else self.layer.content_size

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "diff_id": None if self.layer is None else self.layer.diff_id,
            "created": self.created,
            "created_by": self.created_by,
            "author": self.author,
            "comment": self.comment,
            "size": self.size,
        }


def history(image: Image) -> list[Step]:
    """The steps, the newest first. Layers of which the config does not tell come as steps that say
    nothing, below those of which it does.
    """
    told = image.config.get("history")
    entries = [entry for entry in told if isinstance(entry, dict)] if isinstance(told, list) else []
    layers = list(image.layers)
    steps = []
    for entry in reversed(entries):
        layer = None
        if entry.get("empty_layer") is not True and layers:
            layer = layers.pop()
        texts = (entry.get(key) for key in ("created", "created_by", "author", "comment"))
        steps.append(Step(layer, *(text if isinstance(text, str) else "" for text in texts)))
    return steps + [Step(layer) for layer in reversed(layers)]
