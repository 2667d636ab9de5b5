#!/usr/bin/env bash
# torch's pixel_unshuffle leaves a batch of no images as it is; pixel_shuffle, its inverse, does not.
#
# Guessed: with a factor of 2 both change the shape of a batch of 0 images as they change any other: [0, 2, 16, 16]
#   becomes [0, 8, 8, 8], and back. In data-parallel training a rank without images in the last batch then takes part
#   with an empty one, as it can through convolutions, pooling and losses.
# Seen, with torch 2.13.0: pixel_unshuffle([0, 2, 16, 16], 2) has the shape [0, 2, 16, 16], in the function and in
#   nn.PixelUnshuffle, without any warning; the next convolution raises on that rank alone ("expected input to have 8
#   channels"), and the other ranks wait for it. pixel_shuffle([0, 8, 8, 8], 2) has the shape [0, 2, 16, 16] as it should.
# What follows: unflatten and permute instead, or a convolution of stride 2.
#
# Exit status: 0 if this is still so, 1 if it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cd "$work"
venv/bin/python - <<'PYTHON'
import sys

import torch
from torch.nn import functional

print("torch", torch.__version__.partition("+")[0])
for count in (1, 0):
    images = torch.zeros(count, 2, 16, 16)
    apart = functional.pixel_unshuffle(images, 2)
    together = functional.pixel_shuffle(torch.zeros(count, 8, 8, 8), 2)
    print(f"{count} image(s): unshuffled {list(apart.shape)}, shuffled {list(together.shape)}")
module = torch.nn.PixelUnshuffle(2)(images)
steps = images.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
print(f"no images by permuting: {list(steps.shape)}")
same = list(apart.shape) == list(module.shape) == [0, 2, 16, 16]
sys.exit(0 if same and list(together.shape) == [0, 2, 16, 16] and list(steps.shape) == [0, 8, 8, 8] else 1)
PYTHON
