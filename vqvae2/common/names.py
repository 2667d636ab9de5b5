"""Nothing -> the names that several packages share."""



SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"}


SPLITS = ("train", "validate", "test")
