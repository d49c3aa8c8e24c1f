"""Mediffuse: translate head CT to MRI and MRI to CT with diffusion models. Research use only."""

__version__ = "0.1.0"
