"""Training of the network for compression without loss: what is trained is what is stored."""

import json

import numpy as np
import pytest
import torch

from tools import train_lossless
from vqvae2.common.errors import UserError
from vqvae2.compression import coder
from vqvae2.compression.lossless import ResidualCoder
from vqvae2.compression.pixel_network import LINE, PixelNetwork
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings

PAST, AROUND = train_lossless.neighbours(3), train_lossless.surroundings(1.5)


@pytest.fixture
def network():
    """A network whose activations are spread over their range."""
    torch.manual_seed(0)
    network = train_lossless.Network(len(PAST) + len(AROUND), (12, 8))
    with torch.no_grad():
        for layer in network.layers:
            layer.weight.mul_(2)
    return network


def stored(network):
    return PixelNetwork({name: tensor.numpy() for name, tensor in network.tensors(PAST, AROUND).items()})


def test_the_stored_network_gives_the_answers_of_the_trained_one_exactly(network):
    inputs = np.random.default_rng(0).integers(0, 256, (500, len(PAST) + len(AROUND)))
    given = torch.from_numpy(inputs).double() / LINE
    given[:, 1:] -= given[:, :1].clone()
    answers = network.double()(given).detach().numpy()
    assert np.array_equal(stored(network)(inputs), np.rint(answers * 2**10 * LINE))


def test_weights_whose_sums_might_not_be_exact_are_made_smaller_and_no_others(network):
    before = [layer.weight.clone() for layer in network.layers]
    with torch.no_grad():
        network.keep_exact()
        assert all(torch.equal(layer.weight, weight) for layer, weight in zip(network.layers, before))
        network.hidden[1].weight[2] *= 100
        network.last.weight[4, 9] = 300
        network.keep_exact()
        stored(network)
        assert (network.hidden[1].weight[2] / before[1][2]).tolist() == pytest.approx([network.hidden[1].weight[
            2, 0].item() / before[1][2, 0].item()] * 12)
        assert network.last.weight[4, 9] < 100
        assert torch.equal(network.hidden[1].weight[3], before[1][3])


def test_the_loss_is_the_length_of_the_code(network):
    """The stored tables have steps of 1/16 in logarithms, which changes little."""
    inputs = np.random.default_rng(1).integers(60, 90, (400, len(PAST) + len(AROUND)))
    values = np.random.default_rng(2).integers(0, 256, 400) * (np.arange(400) % 3 > 0)
    given = torch.from_numpy(inputs).float() / LINE
    given[:, 1:] -= given[:, :1].clone()
    expected = train_lossless.bits(network(given), torch.from_numpy(values)).detach().numpy()
    exact = stored(network)
    answers = exact(inputs)
    black = exact.black(answers) / coder.TOTAL
    edges = np.stack([values, values + 1, np.full(400, 256)], 1)
    below = exact.below(exact.mixture(answers), edges, 8).astype(float)
    found = -np.log2(np.where(values, (1 - black) * (below[:, 1] - below[:, 0]) / below[:, 2], black))
    assert found.mean() == pytest.approx(expected.mean(), abs=0.02)
    assert found == pytest.approx(expected, abs=0.2)


def test_neighbours_come_before_the_pixel_in_the_order_of_coding_and_the_left_one_is_first():
    places = PAST.tolist()
    assert places[:2] == [[0, -1], [-1, 0]]
    assert [-1, 2] in places
    assert [-1, 3] not in train_lossless.neighbours(9).tolist()
    assert all(column + 3 * row < 0 for row, column in places)
    assert AROUND.tolist()[0] == [0, 0]
    assert len(AROUND) == 9


def test_pixels_show_what_the_coder_sees_and_count_those_that_see_nothing():
    image = np.zeros((2, 6, 7), np.uint8)
    image[1, 2, 3], image[1, 2, 4] = 50, 70
    pixels = train_lossless.Pixels(image, None, PAST, AROUND[:0])
    assert pixels.quiet.nonzero()[:, 0].tolist() == [0, 50]  # the first pixel of the two sees only zeros
    assert len(pixels.items) + int(pixels.quiet.sum()) == pixels.all_pixels == 84
    inputs, values = pixels.batch(torch.arange(len(pixels.items)))
    (of_second,) = (inputs[values == 70] * LINE).tolist()
    assert of_second == [50, *[-50] * (len(PAST) - 1)]


def test_a_training_leaves_a_coder_that_costs_what_it_reported(tiny_slices, tmp_path, capsys):
    train_lossless.main(["--data", str(tiny_slices), "--out", str(tmp_path / "out"), "--steps", "30", "--batch", "512",
                         "--widths", "16", "8", "--reach", "3", "--judged", "6"])
    reports = capsys.readouterr().out.splitlines()
    first, last = (float(line.split()[4]) for line in (reports[0], reports[-1]))
    assert last < first
    found = ResidualCoder.load(tmp_path / "out")
    images = load_images(DataSettings(data=tiny_slices), ("validate",)).splits["validate"].pixels[:6, 0]
    payloads = found.encode(images)
    assert 8 * sum(map(len, payloads)) / images.size == pytest.approx(last, abs=32 / images[0].size + 0.02)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert str(tmp_path) not in str(config)
    assert len(config["training_subjects"]) > 0


def test_a_training_goes_on_with_a_stored_network(tiny_slices, tmp_path, capsys):
    """At a rate of next to nothing the network stays what it was."""
    common = ["--data", str(tiny_slices), "--batch", "64", "--widths", "16", "8", "--reach", "3", "--judged", "2"]
    train_lossless.main([*common, "--out", str(tmp_path / "first"), "--steps", "3"])
    train_lossless.main([*common, "--out", str(tmp_path / "second"), "--steps", "2", "--rate", "1e-12", "--start",
                         str(tmp_path / "first")])
    assert ResidualCoder.load(tmp_path / "first").hash == ResidualCoder.load(tmp_path / "second").hash
    with pytest.raises(UserError, match=r"--start .*first: expected layers of .*\[14, 4\].*, found .*--widths"):
        train_lossless.main([*common, "--out", str(tmp_path / "third"), "--widths", "4", "--start",
                             str(tmp_path / "first")])


def test_settings_that_make_no_network_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--reach: expected 1 or more, found 0\.5\. The default is 6\.5\."):
        train_lossless.main(["--data", "x", "--out", str(tmp_path), "--reach", "0.5"])
