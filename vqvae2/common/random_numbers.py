"""(seed, what, number) -> uniform numbers, the same on every machine, rank and batch.

Training and sampling take the random numbers of an image from that image's own number, and not from a generator whose
state depends on what was drawn before. So a checkpoint needs no random state, and neither the number of ranks nor the
batch changes a result. The hash is SplitMix64 (Steele, Lea and Flood 2014).
"""

import numpy as np
import torch


def mix(values: np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of each of `values` (uint64)."""
    with np.errstate(over="ignore"):
        z = values + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def keys(seed: int, purpose: str, *numbers: int | np.ndarray) -> np.ndarray:
    """Return 64-bit keys of (seed, purpose, numbers…); arrays among `numbers` are broadcast."""
    key = mix(np.asarray(seed % 2**64, np.uint64))
    for byte in purpose.encode():
        key = mix(key ^ np.uint64(byte))
    for number in numbers:
        key = mix(key ^ np.asarray(number).astype(np.uint64))
    return key


def uniform(seed: int, purpose: str, *numbers: int | np.ndarray) -> torch.Tensor:
    """Return numbers in [0, 1), float64, of the shape that `numbers` broadcast to (see `keys`)."""
    return torch.from_numpy(np.asarray((keys(seed, purpose, *numbers) >> np.uint64(11)) * 2.0**-53))


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Return a CPU generator for (seed, purpose, numbers…), where many random numbers are needed at once."""
    return torch.Generator().manual_seed(int(keys(seed, purpose, *numbers)) >> 1)
