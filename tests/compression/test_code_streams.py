"""Code maps of any priors <-> bytes, in any batch, on any number of threads and any kind of CPU."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_prior import CODES, prior

from vqvae2.compression import code_streams, coder, frequencies
from vqvae2.priors.base import WholeMapCursor
from vqvae2.priors.conditions import Column

AGE, SEX = Column("age", (), 60.0, 10.0, 40.0, 80.0), Column("sex", ("F", "M"))
STORED = Path(__file__).parents[1] / "stored" / "code-streams.json"


def priors(seed=0, shape=(2, 4), *, levels=2, scale=1.0, columns=((AGE, SEX), (AGE,)), layers=3):
    """Random priors of one or two levels; the larger `scale`, the farther their codes are from even."""
    made = {"top": prior("top", shape, layers, seed=seed, columns=columns[0])}
    if levels == 2:
        made["bottom"] = prior("bottom", (2 * shape[0], 2 * shape[1]), layers, seed=seed + 1, columns=columns[1])
    for each in made.values():
        with torch.no_grad():
            each.table.mul_(scale)
            each.bias.normal_().mul_(scale)
    return made


def random_maps(models, count, seed=0):
    draws = torch.Generator().manual_seed(seed)
    known = torch.randn(count, len(code_streams.columns_of(models)), generator=draws)
    known[torch.rand(known.shape, generator=draws) < 0.3] = math.nan
    if SEX in code_streams.columns_of(models):
        known[:, 1] = torch.randint(2, (count,), generator=draws).float()
    return {level: torch.randint(CODES, (count, *each.shape), generator=draws)
            for level, each in models.items()}, known


def nll_bits(models, levels, known):
    """Bits of an ideal coder for each image, by the slow way."""
    columns, total = code_streams.columns_of(models), 0
    for level, model in models.items():
        own = known[:, [columns.index(column) for column in model.columns]].double() if model.columns else None
        with torch.no_grad():
            logits = model(levels[level], levels["top"], own)
        total = total + torch.nn.functional.cross_entropy(logits, levels[level], reduction="none").sum((1, 2))
    return total / math.log(2)


def equal(first, second):
    return all(torch.equal(first[level], second[level]) for level in first)


@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(1, 1), (2, 3), (4, 4)]), levels=st.integers(1, 2),
       scale=st.sampled_from([0.0, 1.0, 6.0, 300.0]), count=st.integers(1, 5), batch=st.integers(1, 5),
       threads=st.integers(1, 2))
@settings(max_examples=30)
def test_any_codes_of_any_priors_come_back_in_any_batch_and_on_any_threads(seed, shape, levels, scale, count, batch,
                                                                           threads):
    models = priors(seed, shape, levels=levels, scale=scale)
    maps, known = random_maps(models, count, seed)
    torch.set_num_threads(threads)
    try:
        streams = code_streams.encode(models, maps, known, batch)
    finally:
        torch.set_num_threads(1)
    together, readable = code_streams.decode(models, streams, known)
    assert all(readable)
    assert equal(together, maps)
    for item, stream in enumerate(streams):
        alone, _ = code_streams.decode(models, [stream], known[item:item + 1])
        assert equal(alone, {level: codes[item:item + 1] for level, codes in maps.items()})


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 1.0, 3.0]))
@settings(max_examples=20)
def test_a_stream_needs_as_many_bits_as_an_ideal_coder_and_few_more(seed, scale):
    models = priors(seed, (4, 4), scale=scale)
    maps, known = random_maps(models, 4, seed)
    bits = nll_bits(models, maps, known)
    sizes = torch.tensor([8 * len(stream) for stream in code_streams.encode(models, maps, known, 4)])
    assert (sizes >= bits - 1).all()
    assert (sizes <= 1.01 * bits + 64).all()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20)
def test_places_that_noise_could_tip_are_listed_and_decoded_by_a_decoder_that_is_tipped(seed):
    """The decoder's logits are off by as much as the margin that the encoder was told."""
    models = priors(seed, (4, 4), levels=1)
    maps, known = random_maps(models, 3, seed)
    streams = code_streams._encode(models, maps, known, 3, lambda _: None, margin=1e-4)
    noise = torch.Generator().manual_seed(seed)

    class Noisy(WholeMapCursor):
        def step(self, row, column):
            logits = super().step(row, column)
            return logits + (torch.rand(logits.shape, generator=noise, dtype=logits.dtype) - 0.5) * 1e-4

    models["top"].cursor = lambda *told: Noisy(models["top"], *told)
    decoded, readable = code_streams.decode(models, streams, known)
    assert all(readable)
    assert equal(decoded, maps)


def test_without_a_list_of_places_that_decoder_would_lose_its_thread():
    models = priors(1, (8, 8), levels=1)
    maps, known = random_maps(models, 20, 1)
    streams = code_streams._encode(models, maps, known, 20, lambda _: None, margin=0.0)
    shifted = models["top"]
    cursor = shifted.cursor
    shifted.cursor = lambda *told: _Shifted(cursor(*told))
    decoded, _ = code_streams.decode(models, streams, known)
    assert not equal(decoded, maps)


class _Shifted:
    """A cursor whose logits are off by a part in a thousand."""

    def __init__(self, cursor):
        self.cursor, self.tell = cursor, cursor.tell

    def step(self, row, column):
        return self.cursor.step(row, column) * 1.001


def test_a_stream_that_does_not_come_back_is_stored_with_equal_frequencies(monkeypatch):
    models = priors(levels=1)
    maps, known = random_maps(models, 3)
    decode, tries = code_streams.decode, []

    def wrong(*arguments):
        levels, readable = decode(*arguments)
        tries.append(len(readable))
        levels["top"][1, 0, 0] += 1
        return levels, readable

    monkeypatch.setattr(code_streams, "decode", wrong)
    plain, verified = (code_streams.encode(models, maps, known, 3, verify=verify) for verify in (False, True))
    assert tries == [3]
    assert [first == second for first, second in zip(plain, verified)] == [True, False, True]
    flat = coder.Decoder(verified[1][1 + 8:]).decode(np.tile(np.diff(frequencies.uniform(CODES)), (8, 1)))
    assert flat.tolist() == maps["top"][1].flatten().tolist()
    assert equal(decode(models, verified, known)[0], maps)


def test_streams_of_no_images_are_none():
    models = priors()
    maps, known = random_maps(models, 0)
    assert code_streams.encode(models, maps, known, 4) == []


@pytest.mark.parametrize("stream", [b"", b"\x80", b"\xff" * 9, b"\x05\x01", b"\x00" + b"\xff" * 40])
def test_a_stream_that_no_encoder_wrote_is_unreadable_or_other_codes_and_costs_no_other(stream):
    models = priors()
    maps, known = random_maps(models, 2)
    own = code_streams.encode(models, maps, known, 2)
    decoded, readable = code_streams.decode(models, [own[0], stream, own[1]], known[[0, 0, 1]])
    assert readable[0]
    assert readable[2]
    assert equal({level: codes[[0, 2]] for level, codes in decoded.items()}, maps)
    assert not readable[1] or code_streams.check_of(decoded, 1) != code_streams.check_of(maps, 0)


ELSEWHERE = """
import json, sys, torch
sys.path[:0] = {paths!r}
from test_code_streams import STORED, stored_models, equal
from vqvae2.compression import code_streams
torch.set_num_threads(int(sys.argv[1]))
said = json.loads(STORED.read_text())
models, maps, known = stored_models(said)
streams = [bytes.fromhex(stream) for stream in said["streams"]]
batch = int(sys.argv[2])
for first in range(0, len(streams), batch):
    items = slice(first, first + batch)
    levels, readable = code_streams.decode(models, streams[items], known[items])
    assert all(readable) and equal(levels, {{level: codes[items] for level, codes in maps.items()}})
print(torch.backends.cpu.get_cpu_capability())
"""


def stored_models(said):
    """Priors whose weights are written down, so that they are the same whatever draws random numbers."""
    models = priors(0, (4, 4), layers=2)
    for model in models.values():
        for number, tensor in enumerate(model.state_dict().values()):
            places = torch.arange(tensor.numel(), dtype=torch.float64)
            tensor.copy_((((places + 7) * (number + 3) * 0.6180339887) % 1 - 0.5).view(tensor.shape) * 1.5)
    maps = {level: torch.tensor(codes) for level, codes in said["codes"].items()}
    return models, maps, torch.tensor(said["known"], dtype=torch.float32)


@pytest.mark.parametrize(("threads", "batch", "environment"), [
    (1, 8, {}), (2, 1, {}), (1, 3, {"ATEN_CPU_CAPABILITY": "default"}), (2, 8, {"ATEN_CPU_CAPABILITY": "avx2"}),
    (1, 1, {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"}), (1, 8, {"MKL_CBWR": "COMPATIBLE"})])
def test_stored_streams_decode_on_this_machine_with_any_kernels(threads, batch, environment):
    """The streams were written by one machine; float64 sums of other kernels differ in their last bits."""
    code = ELSEWHERE.format(paths=sys.path)
    ended = subprocess.run([sys.executable, "-c", code, str(threads), str(batch)], env={**os.environ, **environment},
                           capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.strip() == "DEFAULT" or "default" not in environment.values()


if __name__ == "__main__":  # writes the stored streams
    draws = random_maps(priors(0, (4, 4), layers=2), 8, 5)
    said = {"codes": {level: codes.tolist() for level, codes in draws[0].items()},
            "known": [[None if math.isnan(value) else round(value, 3) for value in row] for row in draws[1].tolist()]}
    said["known"] = [[math.nan if value is None else value for value in row] for row in said["known"]]
    made = stored_models(said)
    said["streams"] = [stream.hex() for stream in code_streams.encode(*made, 8)]
    STORED.write_text(json.dumps(said) + "\n")
