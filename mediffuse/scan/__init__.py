"""Between files and scans: `read_scan`, and what it gives. Knows no model."""

from mediffuse.scan.read import read_scan
from mediffuse.scan.types import MODALITIES, PLANES, Scan, ScanError, SeveralSeriesError, Slice

__all__ = ["MODALITIES", "PLANES", "Scan", "ScanError", "SeveralSeriesError", "Slice", "read_scan"]
