"""Translate slices and volumes. As a command, `python -m mediffuse.translate`, whole volumes."""

from mediffuse.translate.slices import MAX_SEED, SPEEDS, Settings, Translation, Translator, generate

__all__ = ["MAX_SEED", "SPEEDS", "Settings", "Translation", "Translator", "generate"]
