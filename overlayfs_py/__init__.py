"""A copy-on-write union filesystem in user space."""

__version__ = "0.1.0"
