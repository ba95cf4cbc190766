"""Looks at unions from outside, through their layers, without a daemon: `diff` and `which`."""
