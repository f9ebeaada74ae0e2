"""Empty: the place of structure prediction."""
