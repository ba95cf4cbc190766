"""Trees written by one implementation and mounted by another: the kernel, fuse-overlayfs, ours."""
