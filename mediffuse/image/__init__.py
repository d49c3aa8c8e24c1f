"""Between units (HU, MR) and the model image, and pictures for people."""
