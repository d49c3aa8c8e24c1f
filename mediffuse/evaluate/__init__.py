"""Measure checkpoints on paired data: `python -m mediffuse.evaluate --help`."""
