"""The recipes by name, and the archives that they made, each built once."""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from image_recipes.programs import Failed, scratch

Build = Callable[[Path, Path], None]
"""Makes an image: takes an empty directory to work in and the path of the archive to write."""


@dataclass(frozen=True)
class Recipe:
    """How an image is built, and what else its content depends on."""

    build: Build
    uses: tuple[Callable[..., object], ...]

    @property
    def title(self) -> str:
        """What is in the image, in one line."""
        return (self.build.__doc__ or "").splitlines()[0]

    def digits(self) -> str:
        """Twelve that change with the text of what builds the image."""
        texts = [inspect.getsource(build) for build in (self.build, *self.uses)]
        return hashlib.sha256("".join(texts).encode()).hexdigest()[:12]


IMAGES: dict[str, Recipe] = {}


def register(name: str, build: Build, *uses: Callable[..., object]) -> None:
    """Make an image known by its name."""
    IMAGES[name] = Recipe(build, uses)


def cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "overlayfs-py" / "images"


def cached(name: str) -> Path:
    """The image's archive, built unless one of the same recipe is there."""
    recipe = IMAGES[name]
    directory = cache_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(f"{directory}: {error.strerror}; set XDG_CACHE_HOME") from None
    path = directory / f"{name}-{recipe.digits()}.tar"
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with scratch(directory) as place:
                made = place / "image.tar"
                recipe.build(place, made)
                os.rename(made, path)
            for old in directory.glob(f"{name}-" + "?" * 12 + ".tar"):
                if old != path:
                    old.unlink()
    return path
