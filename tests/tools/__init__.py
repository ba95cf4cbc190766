"""The commands in tools/, run as a user runs them."""
