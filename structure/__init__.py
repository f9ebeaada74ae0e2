"""From sequence to coordinates: the folder of the structure model."""
