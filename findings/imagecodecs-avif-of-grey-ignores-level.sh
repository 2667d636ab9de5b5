#!/usr/bin/env bash
# imagecodecs writes a grey image as lossless AVIF, whatever quality is asked for.
#
# Guessed: avif_encode(image, level=10) is lossy and small for an array of one channel, as it is for one of three.
# Seen, with imagecodecs 2026.3.6: levels 1, 10, 50 and 90 give the same bytes for a uint8 array [height, width], and
#   pixels come back exactly. The same array as three equal channels becomes smaller with a lower level; with
#   pixelformat="400" it is then stored as one channel and comes back as one.
# What follows: rates of AVIF for grey slices are measured on three equal channels with pixelformat="400"; otherwise AVIF
#   seems to need ten times the bytes.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet imagecodecs==2026.3.6 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import imagecodecs
import numpy as np

down, across = np.indices((128, 128))
grey = (127 + 60 * np.sin(down / 9) + 60 * np.cos(across / 7 + down / 20)).astype(np.uint8)
grey ^= np.random.default_rng(0).integers(0, 8, grey.shape, dtype=np.uint8)
colours = np.repeat(grey[..., None], 3, 2)
levels = (1, 10, 50, 90)
ones = [imagecodecs.avif_encode(grey, level=level) for level in levels]
threes = [imagecodecs.avif_encode(colours, level=level, pixelformat="400") for level in levels]
print("imagecodecs", imagecodecs.__version__)
print("one channel:", *map(len, ones), "bytes; exact:", *(np.array_equal(imagecodecs.avif_decode(data), grey) for data in ones))
print("three equal channels, stored as one:", *map(len, threes), "bytes")
same = len(set(ones)) == 1 and np.array_equal(imagecodecs.avif_decode(ones[0]), grey)
smaller = sorted(map(len, threes)) == list(map(len, threes)) and len(threes[0]) * 4 < len(threes[-1])
raise SystemExit(0 if same and smaller else 1)
EOF
