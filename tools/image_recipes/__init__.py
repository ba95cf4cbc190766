"""The images of `tools/images`, by what builds them. Standard library only: tools/images runs before
anything is installed."""

from image_recipes import debian, family, odd
from image_recipes.cache import IMAGES, cached
from image_recipes.family import FAMILY
from image_recipes.programs import Failed

SMALL = [name for name in IMAGES if name not in FAMILY]
"""What the tests need."""

__all__ = ["FAMILY", "IMAGES", "SMALL", "Failed", "cached", "debian", "family", "odd"]
