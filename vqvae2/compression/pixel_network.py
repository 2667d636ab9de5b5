"""Neighbours of a pixel -> what the pixel may be: a network of whole numbers [1], and tables that turn its answer into
frequencies.

The answer for a pixel is the probability that it is 0 (background), and a mixture of three logistic distributions of
its grey value where it is not [2]. All of it is exact on any machine. Inputs are the grey value 0…255
of the first neighbour and what the others differ from it, activations whole numbers 0…255, weights whole numbers of
which MOST bounds the sums, so that each sum of products is exact in float32 in any order; exponentials and sigmoids are
tables that lie beside the weights. A layer is

    activation = clip(floor((weights x activations below + bias) / 2^LAYER_BITS), 0, 255)

and the last layer, whose answers are not clipped, sees the inputs too: a linear prediction that the others correct.

1. Balle, Johnston and Minnen 2019, Integer networks for data compression with latent-variable models.
2. Salimans, Karpathy, Chen and Kingma 2017, PixelCNN++: improving the PixelCNN with discretized logistic mixture
   likelihood and other modifications.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vqvae2.common.errors import expect
from vqvae2.compression import coder

LAYER_BITS = 10
"""A weight is stored in steps of 2^-10."""
MOST = 1 << 24
"""Whole numbers up to this are exact in float32."""
COMPONENTS = 3
ANSWERS = 3 * COMPONENTS + 1
"""Means, scales and shares of the components; how surely the pixel is 0."""
LINE = 64
"""Network units: an input of 64 counts as 1. The mean is given in 1/LINE of a grey level."""
NATS = 16
"""Scales and shares are logarithms in steps of 1/16."""
SCALES = (-6 * NATS, 3 * NATS)
"""The smallest and the largest logarithm of a component's scale, in steps, where a scale of 1 is LINE grey levels."""
UNSURE = 16 * NATS
"""The largest logit of 0, and the largest difference of shares, in steps."""
EDGE = 514
"""Parts of a grey level in which values are told apart: 2 for each of the 257 levels of 16 bits in one of 8."""
CURVE_BITS, CURVE_STEPS, CURVE_END, CURVE_BETWEEN = 22, 32, 16, 7
"""The sigmoid's table: bits of its values, steps in a unit, the last unit, and bits of a place between two steps."""
SHARE_BITS = 12
WHOLE_BITS = CURVE_BITS + SHARE_BITS
FLOOR = 262
"""What each of 65,535 values has beside the mixture, where all together have 2^WHOLE_BITS: a thousandth in all."""
TO_MEAN, TO_NATS = LAYER_BITS - round(math.log2(LINE)), LAYER_BITS + round(math.log2(LINE / NATS))
"""Bits by which an answer is shifted: to a mean in 1/LINE of a grey level, or to steps of NATS."""


def tables() -> dict[str, np.ndarray]:
    """Return the tables that lie beside the weights, int64, for a training to store.

    Another machine may find other last digits, so that nothing is coded with tables that were not stored.
    """
    def rounded(numbers: np.ndarray) -> np.ndarray:
        return np.rint(numbers).astype(np.int64)

    # An answer is rounded down to a step: its middle stands for it.
    logits = (np.arange(-UNSURE, UNSURE + 1) + 0.5) / NATS
    steps = np.arange(-CURVE_END * CURVE_STEPS, CURVE_END * CURVE_STEPS + 2) / CURVE_STEPS
    curve = rounded(2**CURVE_BITS / (1 + np.exp(-steps)))
    curve[0], curve[-2:] = 0, 2**CURVE_BITS
    scales = LINE * EDGE * np.exp((np.arange(SCALES[0], SCALES[1] + 1) + 0.5) / NATS)
    return {"black": np.clip(rounded(coder.TOTAL / (1 + np.exp(-logits))), 2, coder.TOTAL - 2),
            "shares": rounded(2**20 * np.exp(-np.arange(UNSURE + 1) / NATS)),
            "curve": curve, "inverse_scales": rounded(2**(20 + CURVE_BETWEEN) * CURVE_STEPS / scales)}


def signed_inputs(layer: int, width: int) -> slice:
    """Return which inputs of a layer may be negative: all of the first one's, and what follows `width` activations."""
    return slice(0 if layer == 0 else width, None)


def largest_sums(weights: np.ndarray, signed: slice) -> np.ndarray:
    """Return how far from 0 a sum of products, or of some of them, may come in each row of `weights`.

    Args:
        weights: `[outputs, inputs]`. signed: which inputs are -255…255; the others are 0…255.
    """
    both = np.concatenate([weights, -weights[:, signed]], 1)
    return 255 * np.maximum(np.maximum(both, 0).sum(1), np.maximum(-both, 0).sum(1))


@dataclass(frozen=True)
class Mixture:
    """The logistic distributions of n pixels, int64 `[n, COMPONENTS, 1]`."""

    means: np.ndarray
    """Means are in 1/EDGE of a grey level."""
    inverse_scales: np.ndarray
    shares: np.ndarray
    """Shares are whole numbers that sum up to 2^SHARE_BITS."""


class PixelNetwork:
    """The network and its tables.

    Args:
        tensors: whole numbers: `past` `[p, 2]`, rows and columns from the pixel to those neighbours that came before
            it; `reconstruction` `[q, 2]`, the same to those pixels of a reconstruction that are seen (q may be 0);
            `weights.0`, `bias.0`, … of each layer, `[outputs, inputs]` and `[outputs]`, of which the last has ANSWERS
            outputs, and inputs from the layer below and all of the first layer's; and those of `tables`.
    Raises: UserError where the tensors do not make a network, or a sum may become inexact.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        depth = sum(name.startswith("weights.") for name in tensors)
        wanted = {"past", "reconstruction", *tables(), *(f"{part}.{layer}" for part in ("weights", "bias")
                                                        for layer in range(depth))}
        _check(depth >= 2 and wanted == {*tensors}, f"tensors {sorted(wanted)}", sorted(tensors))
        self.past, self.reconstruction = tensors["past"].astype(np.int64), tensors["reconstruction"].astype(np.int64)
        self.layers = []
        inputs = width = len(self.past) + len(self.reconstruction)
        for layer in range(depth):
            weights, bias = tensors[f"weights.{layer}"].astype(np.int64), tensors[f"bias.{layer}"].astype(np.int64)
            shape = (ANSWERS, width + inputs) if layer == depth - 1 else (len(bias), width)
            found = weights.shape, bias.shape
            _check(found == (shape, shape[:1]), f"weights and bias {layer} of shapes {shape, shape[:1]}", found)
            largest = int((largest_sums(weights, signed_inputs(layer, width)) + np.abs(bias)).max())
            _check(largest < MOST, f"sums below {MOST} in layer {layer}", largest)
            self.layers.append((np.ascontiguousarray(weights.T, np.float32), bias.astype(np.float32)))
            width = len(bias)
        for name, table in tables().items():
            _check(tensors[name].shape == table.shape, f"{name} of shape {table.shape}", tensors[name].shape)
        self._tables = {name: tensors[name].astype(np.int64) for name in tables()}
        self._rises = np.diff(self._tables["curve"], append=0)

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Return the network's answers for n pixels, int64 `[n, ANSWERS]`, which `black` and `mixture` read.

        Args:
            inputs: grey values 0…255 of the neighbours in the past, then of those in the reconstruction, `[n, p + q]`.
        """
        inputs = inputs.astype(np.float32)
        inputs[:, 1:] -= inputs[:, :1]
        found = inputs
        for weights, bias in self.layers[:-1]:
            found = found @ weights
            found += bias
            found *= 2.0**-LAYER_BITS
            np.floor(found, out=found)
            np.clip(found, 0, 255, out=found)
        weights, bias = self.layers[-1]
        return (np.hstack([found, inputs]) @ weights + bias).astype(np.int64)

    def black(self, answers: np.ndarray) -> np.ndarray:
        """Return how often, of coder.TOTAL, each pixel is 0: `[n]`."""
        return self._tables["black"][np.clip(answers[:, -1] >> TO_NATS, -UNSURE, UNSURE) + UNSURE]

    def mixture(self, answers: np.ndarray) -> Mixture:
        """Return the distributions of the grey values of pixels that are not 0."""
        means, scales, shares = np.moveaxis(answers[:, :-1].reshape(-1, 3, COMPONENTS), 1, 0)
        scales, shares = np.clip(scales >> TO_NATS, *SCALES) - SCALES[0], shares >> TO_NATS
        parts = self._tables["shares"][np.minimum(shares.max(1, keepdims=True) - shares, UNSURE)]
        parts = (parts << SHARE_BITS) // parts.sum(1, keepdims=True)
        parts[:, 0] += (1 << SHARE_BITS) - parts.sum(1)
        means = (means >> TO_MEAN) * EDGE // LINE
        return Mixture(*(part[:, :, None] for part in (means, self._tables["inverse_scales"][scales], parts)))

    def below(self, mixture: Mixture, values: np.ndarray, bits: int) -> np.ndarray:
        """Return how often a pixel that is not 0 lies below each of `values`, int64 `[n, m]`.

        Args:
            values: 1 to 2^bits, `[n, m]`, or more, which are taken for 2^bits. bits: of a pixel, 8 or 16.
        The unit is such that all values together have about 2^WHOLE_BITS, and each has at least FLOOR.
        """
        last, width, end = (1 << bits) - 1, EDGE if bits == 8 else 2, CURVE_END * CURVE_STEPS
        edges = values * width - width // 2
        place = (edges[:, None] - mixture.means) * mixture.inverse_scales >> 20
        place += end << CURVE_BETWEEN
        np.clip(place, 0, 2 * end << CURVE_BETWEEN, out=place)
        step = place >> CURVE_BETWEEN
        place &= (1 << CURVE_BETWEEN) - 1
        place *= self._rises[step]
        place >>= CURVE_BETWEEN
        place += self._tables["curve"][step]
        found = (place * mixture.shares).sum(1)
        found = np.where(values <= 1, 0, np.where(values > last, 1 << WHOLE_BITS, found))
        return found + (values - 1) * (FLOOR * width // 2)


def _check(ok: bool, rule: str, found: object) -> None:
    expect(ok, "network of pixels", rule, found, "Copy its folder again from where it came, or train it again.")
