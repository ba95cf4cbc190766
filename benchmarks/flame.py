"""Draws stacks as an icicle graph: one SVG file without script, callers above what they call.

A box is as wide as the share of samples that its frame and all below it have; pointing at it in a
browser tells the whole name, the share, and the share of the frame itself.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

WIDTH = 1200
LINE = 17
MARGIN = 10
TOP = 44
NARROWEST = 1.5  # pixels; what is narrower is left out
LETTER = 6.6  # pixels of one letter at 11 px


@dataclass(slots=True)
class _Frame:
    total: int = 0
    own: int = 0
    below: "dict[str, _Frame]" = field(default_factory=dict)


def draw(stacks: Mapping[tuple[str, ...], int], title: str) -> str:
    """The picture of `stacks`, each a path of frames from the outermost, with its samples."""
    root = _tree(stacks)
    boxes: list[str] = []
    depth = _place(root, MARGIN, (WIDTH - 2 * MARGIN) / max(1, root.total), 0, root.total, boxes)
    height = TOP + depth * LINE + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="11">',
            f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
            f'<text x="{MARGIN}" y="24" font-size="15">{escape(title)}, '
            f"{root.total} samples</text>",
            *boxes,
            "</svg>\n",
        ]
    )


def _tree(stacks: Mapping[tuple[str, ...], int]) -> _Frame:
    root = _Frame()
    for stack, count in stacks.items():
        frame = root
        frame.total += count
        for name in stack:
            frame = frame.below.setdefault(name, _Frame())
            frame.total += count
        frame.own += count
    return root


def _place(
    frame: _Frame, left: float, scale: float, depth: int, all_samples: int, boxes: list[str]
) -> int:
    """Draws what is below `frame`, starting `left`; returns how many lines that takes."""
    deepest = depth
    for name, child in sorted(frame.below.items(), key=lambda item: -item[1].total):
        width = child.total * scale
        if width >= NARROWEST:
            boxes.append(_box(name, child, left, width, TOP + depth * LINE, all_samples))
            deepest = max(
                deepest, _place(child, left, scale, depth + 1, all_samples, boxes), depth + 1
            )
        left += width
    return deepest


def _box(name: str, frame: _Frame, left: float, width: float, top: int, all_samples: int) -> str:
    letters = int((width - 6) / LETTER)
    label = name if len(name) <= letters else name[: letters - 1] + "…" if letters > 3 else ""
    share, own = 100 * frame.total / all_samples, 100 * frame.own / all_samples
    return (
        f"<g><title>{escape(name)}: {share:.1f} %, itself {own:.1f} %</title>"
        f'<rect x="{left:.1f}" y="{top}" width="{max(width - 0.5, 0.5):.1f}" height="{LINE - 1}" '
        f'fill="{_colour(name)}"/>'
        f'<text x="{left + 3:.1f}" y="{top + 12}">{escape(label)}</text></g>'
    )


def _colour(name: str) -> str:
    """Python frames are blue, native ones orange; the same name has always the same shade."""
    shade = zlib.crc32(name.encode()) % 16
    return f"hsl(207, 65%, {70 + shade}%)" if ".py:" in name else f"hsl(28, 75%, {70 + shade}%)"
