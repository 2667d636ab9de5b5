"""Nothing -> the names that several packages share."""

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"}
SPLITS = ("train", "validate", "test")
NORMAL = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The axis of a RAS volume that a plane is perpendicular to."""
KERAS = "keras_png_slices_"
"""The names of the folders of the OASIS PNG release begin so."""
CASES_UNFINISHED = ".cases-before.csv"
"""This file is there while extract_slices.py --layout keras_png_slices changes its links."""
