"""Lesion masks from FLAIR alone, for patients whose scans come without any."""
