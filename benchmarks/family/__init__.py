"""The store measured on the family of real images that `tools/images --family` builds."""
