"""Files that one machine wrote, with the shipped models, of sampled images -> the same codes on every other machine."""

from pathlib import Path

import pytest
import torch
from ways_of_drawing import drawing, every_way

from vqvae2.compression import code_streams, models
from vqvae2.compression.container import IMAGES, Chunk, Compressed
from vqvae2.sampling import sampler

FILES = [Path(__file__).parents[1] / "stored" / f"sampled-64-{number}.vqmri" for number in range(3)]


@pytest.fixture(scope="module")
def own():
    return models.load("vqvae-64", "top-64", "bottom-64")


@every_way
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_stored_files_decode_to_the_codes_that_were_written(own, path, way):
    content = Compressed.read(path)
    own.expect_own(path.name, content.hashes)
    [chunk] = [Chunk.unpacked(data, len(code_streams.columns_of(own.priors))) for data in content.chunks]
    with drawing(way):
        levels, readable = code_streams.decode(own.priors, [chunk.stream], torch.tensor([chunk.known]))
    assert readable == [True]
    assert code_streams.check_of(levels, 0) == chunk.check


@every_way
def test_they_are_written_alike_today(own, way):
    """What an encoder chooses is free, but for the tables: no change of it is to go unnoticed."""
    contents = [Compressed.read(path) for path in FILES]
    chunks = [Chunk.unpacked(content.chunks[0], 1) for content in contents]
    known = torch.tensor([chunk.known for chunk in chunks])
    with drawing(way):
        levels, _ = code_streams.decode(own.priors, [chunk.stream for chunk in chunks], known)
        assert code_streams.encode(own.priors, levels, known, 2) == [chunk.stream for chunk in chunks]


if __name__ == "__main__":  # writes them
    made = models.load("vqvae-64", "top-64", "bottom-64")
    rules = dict.fromkeys(made.priors, sampler.SamplingRule())
    told = torch.tensor([[-1.0], [0.25], [float("nan")]])
    maps = sampler.draw_maps(made.priors, range(3), 7, rules, dict.fromkeys(made.priors, told))
    for item, stream in enumerate(code_streams.encode(made.priors, maps, told, 3)):
        packed = Chunk(code_streams.check_of(maps, item), tuple(told[item].tolist()), stream).packed()
        FILES[item].write_bytes(Compressed(IMAGES, tuple(made.hashes.values()), (1, 64, 64), 8, [packed]).packed())
