"""Speaks FUSE; knows nothing of whiteouts."""
