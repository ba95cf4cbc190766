"""Benchmarks of union filesystems, side by side and by their command lines only.

Owns measuring, comparing and reporting; knows nothing of how any filesystem works inside, so it
never imports `overlayfs_py` or `layerstore`. `python -m benchmarks --help` is the way in.
"""
