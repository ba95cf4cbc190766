"""One directory tree each: what the union is made of."""
