"""The union of layers; knows nothing of FUSE."""
