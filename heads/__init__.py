"""Empty: the place of task heads."""
