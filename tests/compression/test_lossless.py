"""Compression without loss: images come back bit for bit, and the bytes are the same on any machine."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies

from vqvae2.common.errors import UserError
from vqvae2.compression import coder, lossless, pixel_network
from vqvae2.compression.pixel_network import ANSWERS, PixelNetwork, tables
from vqvae2.runs import weights

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "pretrained" / "lossless"
STORED = ROOT / "tests" / "stored" / "lossless.json"
PAST = np.array([(0, -1), (0, -2), (-1, -1), (-1, 0), (-1, 1), (-1, 2), (-2, 5)])
AROUND = np.array([(0, 0), (0, 1), (1, 0), (-1, 3)])


def tensors(*, seed=0, reconstruction=False, width=6):
    """A network of random weights, which is as sure of the wrong values as of the right ones."""
    rng = np.random.default_rng(seed)
    around = AROUND if reconstruction else AROUND[:0]
    inputs = len(PAST) + len(around)
    return {"past": PAST, "reconstruction": around, **tables(),
            "weights.0": rng.integers(-900, 900, (width, inputs)), "bias.0": rng.integers(-9000, 90000, width),
            "weights.1": rng.integers(-900, 900, (ANSWERS, width + inputs)),
            "bias.1": rng.integers(-90000, 90000, ANSWERS)}


def random_coder(**options):
    return lossless.ResidualCoder(PixelNetwork(tensors(**options)), "a hash")


def pictures(shape, kind, bits, seed):
    """Images `[n, height, width]` of a kind."""
    rng, white = np.random.default_rng(seed), (1 << bits) - 1
    flat = {"black": 0, "white": white, "nearly black": 1}
    if kind in flat:
        found = np.full(shape, flat[kind])
    elif kind == "extremes":
        found = rng.choice([0, 1, white - 1, white], shape)
    elif kind == "smooth":
        found = np.add.outer(np.arange(shape[0]), np.add.outer(np.arange(shape[1]), np.arange(shape[2]))) * white // 80
    else:
        found = rng.integers(0, white + 1, shape) * (rng.random(shape) < 0.5)
    return found.clip(0, white).astype(np.uint8 if bits == 8 else np.uint16)


def slices(bits, count=3, side=48):
    """Ellipses with a pattern on a background of 0, made by whole numbers alone, so that any machine has the same."""
    rows, columns = np.indices((side, side))
    numbers = np.arange(count)[:, None, None]
    inside = (rows - side // 2) ** 2 * 3 + (columns - side // 2) ** 2 * 4 < (side - numbers) ** 2 * 3 // 4
    grey = 90 + (rows * rows // 9 + columns * 3 + numbers * 7) % 60 + (rows * 37 ^ columns * 101 ^ numbers * 11) % 13
    if bits == 16:
        grey = grey * 257 + (rows * 7919 + columns * 104729) % 257
    return (grey * inside).astype(np.uint8 if bits == 8 else np.uint16)


@settings(deadline=None, max_examples=80)
@given(strategies.tuples(strategies.integers(1, 3), strategies.integers(1, 19), strategies.integers(1, 23)),
       strategies.sampled_from(["black", "white", "nearly black", "extremes", "smooth", "noise"]),
       strategies.sampled_from([8, 16]), strategies.booleans(), strategies.integers(0, 50))
def test_any_image_comes_back(shape, kind, bits, reconstruction, seed):
    images = pictures(shape, kind, bits, seed)
    seen = pictures(shape, "noise", 8, seed + 1) if reconstruction else None
    found = random_coder(seed=seed, reconstruction=reconstruction)
    payloads = found.encode(images, seen)
    decoded = found.decode(payloads, seen, shape[1:], bits)
    assert decoded.dtype == images.dtype
    assert np.array_equal(decoded, images)
    assert max(map(len, payloads)) <= images[0].nbytes
    # A network of random weights seldom saves anything: the coder's own bytes are decoded too.
    assert np.array_equal(found._decoded(found._encoded(images, seen), seen, shape[1:], bits), images)


@pytest.mark.parametrize("bits", [8, 16])
def test_an_image_has_the_same_bytes_alone_and_among_others(bits):
    found = lossless.ResidualCoder.load(SHIPPED)
    images = slices(bits, 5)
    together = found.encode(images)
    assert together == [found.encode(image[None])[0] for image in images]
    assert np.array_equal(found.decode(together[3:], None, images.shape[1:], bits), images[3:])


def test_many_images_are_decoded_together():
    """A step then has so many pixels that numpy lays out its arrays in another way, which the coder once took amiss."""
    found, images = lossless.ResidualCoder.load(SHIPPED), np.tile(slices(8, 6), (32, 1, 1))
    assert np.array_equal(found.decode(found.encode(images), None, images.shape[1:], 8), images)


def test_an_image_that_is_like_no_other_takes_the_bytes_of_its_pixels():
    images = np.random.default_rng(0).integers(0, 1 << 16, (2, 40, 30)).astype(np.uint16)
    images[1] = slices(16, 1)[0, 4:44, 9:39]
    found = lossless.ResidualCoder.load(SHIPPED)
    payloads = found.encode(images)
    assert payloads[0] == images[0].astype("<u2").tobytes()
    assert len(payloads[1]) < images[1].nbytes
    assert np.array_equal(found.decode(payloads, None, (40, 30), 16), images)


def test_no_image_has_no_bytes():
    found = random_coder()
    assert found.encode(np.zeros((0, 4, 4), np.uint8)) == []
    assert found.decode([], None, (4, 4), 8).shape == (0, 4, 4)


def test_a_background_costs_next_to_nothing():
    (payload,) = lossless.ResidualCoder.load(SHIPPED).encode(np.zeros((1, 128, 128), np.uint8))
    assert len(payload) <= 8


PROGRAM = """
import hashlib, sys, torch
sys.path.insert(0, sys.argv[1])
from test_lossless import SHIPPED, slices
from vqvae2.compression import lossless
torch.set_num_threads(int(sys.argv[2]))
found = lossless.ResidualCoder.load(SHIPPED)
payloads = [payload for bits in (8, 16) for payload in found.encode(slices(bits))]
assert (found.decode(payloads[:3], None, (48, 48), 8) == slices(8)).all()
print(hashlib.sha256(b"".join(payloads)).hexdigest())
"""
MACHINES = [
    {}, {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
    {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Prescott",
     "NPY_DISABLE_CPU_FEATURES": "AVX512_SPR AVX512_ICL AVX512_SKX X86_V4 AVX2 FMA3 X86_V3"},
    {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OPENBLAS_CORETYPE": "Haswell"}]


def test_other_threads_and_instructions_of_the_processor_give_the_same_bytes():
    found = {subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, str(Path(__file__).parent), threads],
                            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)} | machine, capture_output=True,
                            text=True, check=True).stdout
             for machine, threads in zip(MACHINES, "1212")}
    assert len(found) == 1


@pytest.mark.parametrize("bits", [8, 16])
def test_bytes_that_were_stored_once_are_decoded(bits):
    stored = json.loads(STORED.read_text())
    found = lossless.ResidualCoder.load(SHIPPED)
    assert found.hash == stored["hash"], "another network: store its bytes, and say in the changelog what is lost"
    payloads = [base64.b64decode(text) for text in stored[str(bits)]]
    assert np.array_equal(found.decode(payloads, None, (48, 48), bits), slices(bits))
    assert found.encode(slices(bits)) == payloads


def slow_bits(network, image):
    """The length of an image's code: pixel by pixel and row by row, without digits."""
    found, (height, width) = 0.0, image.shape
    for row, column in np.ndindex(height, width):
        places = network.past + np.array([row, column])
        inputs = [image[up, left] if up >= 0 and 0 <= left < width else 0 for up, left in places]
        answers, value = network(np.array([inputs])), int(image[row, column])
        black = network.black(answers)[0] / coder.TOTAL
        edges = np.array([[value, value + 1, 1, 256]])
        low, high, first, end = network.below(network.mixture(answers), edges, 8)[0].astype(float)
        found -= np.log2((1 - black) * (high - low) / (end - first) if value else black)
    return found


@pytest.mark.parametrize("kind", ["noise", "smooth", "extremes"])
def test_an_image_costs_what_its_pixels_are_believed_to(kind):
    image = pictures((1, 18, 21), kind, 8, 3)
    bits = slow_bits(PixelNetwork(tensors(seed=4)), image[0])
    assert bits - 1 <= 8 * len(random_coder(seed=4)._encoded(image, None)[0]) <= bits * 1.002 + 64


@pytest.mark.parametrize("images", [np.zeros((2, 3, 8, 8), np.uint8), np.zeros((8, 8), np.uint8),
                                    np.zeros((2, 8, 8), np.float32)])
def test_other_images_than_grey_ones_of_8_or_16_bits_are_refused(images):
    with pytest.raises(UserError, match=rf"images: expected grey ones .* found {images.dtype} of shape .*to grey"):
        random_coder().encode(images)


def test_a_reconstruction_is_asked_for_where_the_network_sees_one_and_only_there():
    images = slices(8)
    with pytest.raises(UserError, match=r"expected reconstructions .*, found none\. Give the network"):
        random_coder(reconstruction=True).encode(images)
    with pytest.raises(UserError, match=r"and none elsewhere, found some\."):
        random_coder().decode([b"abcd"], images[:1], (48, 48), 8)


def saved(folder, found, kind=lossless.KIND):
    weights.save_weights(folder / weights.WEIGHTS, {name: torch.from_numpy(array) for name, array in found.items()},
                         {"kind": kind, "settings": {}})
    return folder


def test_a_saved_network_loads_and_has_the_hash_of_its_weights(tmp_path):
    found = lossless.ResidualCoder.load(saved(tmp_path, tensors()))
    assert found.hash == weights.weights_hash({name: torch.from_numpy(array) for name, array in tensors().items()})
    assert found.encode(slices(8)) == random_coder().encode(slices(8))


@pytest.mark.parametrize(("signed", "expected"), [
    (slice(0, 0), [255 * 6, 255 * 9]), (slice(0, None), [255 * 8, 255 * 9]), (slice(2, None), [255 * 8, 255 * 9])])
def test_the_largest_sum_of_a_row_is_that_of_its_worst_inputs(signed, expected):
    """Inputs are 0 to 255: the largest sum has 255 at all positive weights, the smallest at all negative ones."""
    assert pixel_network.largest_sums(np.array([[1, 5, -2], [-9, 0, 0]]), signed).tolist() == expected


@pytest.mark.parametrize(("change", "message"), [
    ({"weights.0": np.full((6, 7), 10000)}, "expected sums below 16777216 in layer 0, found 17"),
    ({"weights.1": np.zeros((ANSWERS, 5), int)}, r"weights and bias 1 of shapes .*\(10, 13\).*found.*\(10, 5\)"),
    ({"past": -PAST}, "expected neighbours that are decoded before the pixel, found others"),
    ({"curve": np.zeros(5, int)}, r"expected curve of shape .*, found \(5,\)")])
def test_tensors_that_make_no_exact_network_are_refused(change, message, tmp_path):
    with pytest.raises(UserError, match=message):
        lossless.ResidualCoder.load(saved(tmp_path, tensors() | change))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"model\.safetensors: expected a weights file"):
        lossless.ResidualCoder.load(tmp_path)
    with pytest.raises(UserError, match=r"expected a network of the kind lossless, found vqvae\. Give a folder"):
        lossless.ResidualCoder.load(saved(tmp_path, tensors(), "vqvae"))


def test_damaged_bytes_give_other_images_or_a_value_error():
    found, images = random_coder(), slices(8, 2)
    payload = found._encoded(images, None)[0]
    endings = set()
    for place in range(0, len(payload), 97):
        damaged = bytearray(payload)
        damaged[place] ^= 0x55
        try:
            endings.add(bool((found.decode([bytes(damaged)], None, (48, 48), 8) == images[0]).all()))
        except ValueError:
            endings.add("error")
    assert endings <= {False, "error"}
