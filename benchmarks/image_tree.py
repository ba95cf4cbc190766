"""A tree as images have it, for `find` and `du`: many directories, most files small, a few layers.

Sizes follow what the project measured on real images: half of the files under 4 KiB, a thin tail.
"""

import random

from benchmarks.forge import SEED, Site, numbered

LAYERS = 5
DIRECTORIES = 400
FILES = 20


def lay_image(site: Site) -> list[str]:
    """8,000 files in 400 directories of three levels, over five layers; every layer adds to each."""
    chance = random.Random(SEED)
    sizes = (200, 1000, 3000, 8000, 30_000)
    for number in range(DIRECTORIES):
        inside = f"usr/{number % 8}/{number % 80:03d}/{number:04d}"
        for layer in range(LAYERS):
            names = [f"{name}.{layer}" for name in numbered(FILES // LAYERS)]
            size = chance.choices(sizes, (30, 25, 20, 15, 10))[0]
            site.flat(names, size, inside=inside, layer=str(layer))
    return [str(layer) for layer in range(LAYERS)]
