"""--augment: other pictures of the same anatomy within bounds in mm, degrees and per cent; of training images alone."""

import csv
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_VQVAE, picture_of
from scipy.interpolate import BSpline
from torch.nn import functional

from vqvae2.commands import train_vqvae
from vqvae2.common import random_numbers
from vqvae2.common.errors import UserError
from vqvae2.images import augmentation, settings
from vqvae2.images.augmentation import Augmentation, moved
from vqvae2.runs import settings as settings_module
from vqvae2.settings import parsing
from vqvae2.training import vqvae
from vqvae2.training.settings import TrainVqvae
from vqvae2.training.trainer import Share

NOTHING = {"no_mirror": True, "rotate_degrees": 0, "shift_mm": 0, "scale_percent": 0, "elastic_mm": 0,
           "intensity_percent": 0}
LARGEST = {"rotate_degrees": 45, "shift_mm": 50, "scale_percent": 50, "elastic_mm": 8, "intensity_percent": 50}
RUN = {"savename": "v", "epochs": 1, "batch": 1}


def settings_of(**bounds) -> TrainVqvae:
    return TrainVqvae(**RUN, augment=True, **bounds)


def augmented(pixels, items=range(7), epoch=0, facts=None, **bounds):
    """The pictures that `items` become; their manifest, if there is one, has 1,000 rows."""
    made = Augmentation(settings_of(**bounds), facts or [{}] * 1000)
    return made(pixels, torch.tensor(list(items), dtype=torch.long), epoch)


def only(**bounds):
    return NOTHING | bounds


def places_of(shape, count=300, field_of_view=200, **bounds):
    """From where each pixel of `count` images is taken, in mm right of and below the middle, `[n, h, w, 2]`."""
    made = Augmentation(settings_of(**only(**bounds)), [{}] * count, field_of_view)
    numbers = np.arange(count)
    draws = random_numbers.uniform(0, "augmentation", 3, numbers[:, None], np.arange(8)[None]).numpy()
    places = made._places(draws, numbers, 3, torch.zeros(count, 1, *shape)).double().numpy()
    return places * [field_of_view / 2, field_of_view / 2 * shape[0] / shape[1]]


def middles(shape, field_of_view=200):
    """Where the pixels themselves lie, in mm right of and below the middle, `[h, w, 2]`."""
    pixel = field_of_view / shape[1]
    down, across = ((np.arange(side) - (side - 1) / 2) * pixel for side in shape)
    return np.stack(np.meshgrid(across, down), -1)


@pytest.fixture
def heads() -> torch.Tensor:
    """Seven heads on black, of a size that no vector instruction divides."""
    return torch.from_numpy(np.stack([picture_of(number, 0, 37) for number in range(7)])[:, None]) / 255


class TestWhatAnImageBecomes:
    @pytest.mark.parametrize("change", [lambda heads: heads, lambda heads: heads[..., 3:-3, :].contiguous(),
                                        lambda heads: torch.cat([heads, heads**2, 1 - heads], 1)],
                             ids=["square", "wider than high", "colours"])
    @pytest.mark.parametrize("bounds", [{}, LARGEST], ids=["default", "largest"])
    def test_it_is_the_same_whatever_else_is_in_its_batch(self, heads, change, bounds):
        heads = change(heads)
        whole = augmented(heads, **bounds)
        assert whole.shape == heads.shape
        for i in range(7):
            assert torch.equal(augmented(heads[i:i + 1], [i], **bounds), whole[i:i + 1])
        assert torch.equal(augmented(heads.flip(0), reversed(range(7)), **bounds).flip(0), whole)
        assert torch.equal(augmented(heads, **bounds), whole)

    @pytest.mark.parametrize("other", [{"epoch": 1}, {"items": range(1, 8)}])
    @pytest.mark.parametrize("part", ["rotate_degrees", "shift_mm", "scale_percent", "elastic_mm", "intensity_percent"])
    def test_each_part_makes_another_picture_in_another_epoch_and_of_another_image(self, other, part, heads):
        bounds = only(**{part: 5})
        before, after = augmented(heads, **bounds), augmented(heads, **bounds, **other)
        assert all(not torch.equal(old, new) for old, new in zip(before, after))
        assert all(not torch.equal(old, new) for old, new in zip(before, heads))

    def test_another_seed_makes_another_picture(self, heads):
        items = torch.arange(7)
        first, second = (Augmentation(settings_of(), [{}] * 7, seed=seed)(heads, items, 0)
                         for seed in (0, 1))
        assert all(not torch.equal(a, b) for a, b in zip(first, second))

    def test_bounds_of_0_leave_every_bit_as_it_is(self, heads):
        given = heads.clone()
        assert torch.equal(augmented(heads, **NOTHING), given)
        augmented(heads)
        assert torch.equal(heads, given)

    def test_values_stay_in_0_to_1_with_black_exactly_0(self, heads):
        for epoch in range(10):
            for bounds in ({}, LARGEST):
                made = augmented(functional.pad((heads * 2).clamp(0, 1), (6, 6, 6, 6)), epoch=epoch, **bounds)
                assert made.min() >= 0
                assert made.max() <= 1
            # Of 224 / 49 mm a pixel; the heads end within 80 mm of the middle, 5 % and 5 + 4 mm further at most.
            made = augmented(functional.pad((heads * 2).clamp(0, 1), (6, 6, 6, 6)), epoch=epoch)
            border = torch.ones_like(made, dtype=torch.bool)
            border[:, :, 2:-2, 2:-2] = False
            assert (made[border] == 0).all()
        assert (augmented(torch.zeros(7, 1, 16, 16)) == 0).all()

    def test_a_pixel_is_black_wherever_all_four_that_it_lies_between_are(self):
        """A white square: the cubic's lobes would leave a glow beside its corners."""
        square = torch.zeros(32, 1, 24, 24)
        square[:, :, 8:16, 8:16] = 1

        def is_rectangle(made):
            lit = made[:, 0] > 0
            return (lit == lit.any(2)[:, :, None] & lit.any(1)[:, None]).all((1, 2))
        assert is_rectangle(augmented(square, range(32), rotate_degrees=0, elastic_mm=0)).all()
        assert not is_rectangle(moved(square, torch.rand(32, 5, generator=torch.Generator().manual_seed(0)))).any()

    def test_brightness_and_contrast_change_by_at_most_so_many_per_cent(self):
        for percent in (10, 20):
            made = augmented(torch.full((500, 1, 8, 8), 0.5), range(500), intensity_percent=percent)[:, 0, 4, 4]
            b = percent / 100  # v = 0.5 (1 ± b), then v + b v (1 - v) or less
            low, high = 0.5 * (1 - b), 0.5 * (1 + b)
            assert low - b * low * (1 - low) < made.min() < low
            assert high < made.max() < high + b * high * (1 - high)
            assert made.mean().item() == pytest.approx(0.5, abs=0.01)

    def test_the_colours_of_a_picture_change_together(self, heads):
        grey = augmented(heads)
        assert torch.equal(augmented(heads.expand(7, 3, 37, 37)), grey.expand(7, 3, 37, 37))

    def test_no_images_stay_none(self):
        assert augmented(torch.zeros(0, 1, 16, 16), ()).shape == (0, 1, 16, 16)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
    def test_cuda_makes_the_same_pictures_up_to_rounding_without_waiting(self, heads):
        """The host stays ahead of the device: no value is brought back from it."""
        device = torch.device("cuda", 0)
        there, made, items = heads.to(device), Augmentation(settings_of(), [{}] * 7), torch.arange(7)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = made(there, items, 0)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = made(heads, items, 0)
        assert found.is_cuda
        # A place on the edge between black and not may fall on either side.
        assert ((found.cpu() - expected).abs() < 1e-4).float().mean() > 0.999
        assert torch.equal(made(there[3:4], items[3:4], 0), found[3:4])


class TestMirroring:
    def test_about_half_are_mirrored_and_none_is_upside_down(self):
        ramp = torch.linspace(0.2, 0.8, 32)
        across, down = ramp.expand(200, 1, 32, 32), ramp[:, None].expand(200, 1, 32, 32)
        made = augmented(across, range(200))[:, 0, 16]
        assert (made[:, 24] < made[:, 8]).float().mean().item() == pytest.approx(0.5, abs=0.14)  # four deviations
        made = augmented(down, range(200))[:, 0, :, 16]
        assert (made[:, 24] > made[:, 8]).all()

    def test_it_alone_is_exact(self, heads):
        for epoch in range(5):
            made = augmented(heads, epoch=epoch, **only(no_mirror=False))
            assert all(torch.equal(first, was) or torch.equal(first, was.flip(2)) for first, was in zip(made, heads))
        assert not torch.equal(made, heads)

    def test_a_sagittal_image_is_never_mirrored_and_its_neighbours_in_the_batch_are(self, heads):
        planes = ["sagittal", "axial", "sagittal", "coronal", "sagittal", "", "sagittal"]
        ever = torch.zeros(7, dtype=torch.bool)
        for epoch in range(40):
            made = augmented(heads, epoch=epoch, facts=[{"plane": plane} for plane in planes], **only(no_mirror=False))
            ever |= (made != heads).flatten(1).any(1)
        assert ever.tolist() == [plane != "sagittal" for plane in planes]


class TestBounds:
    """The measures of 300 images stay within a bound, and come near to it on both sides."""

    def test_shifts_reach_their_mm_across_and_down_and_no_further(self):
        """Taken from 3 mm further left, a picture has moved 3 mm to the right."""
        shift = places_of((20, 30), shift_mm=7) - middles((20, 30))
        assert np.ptp(shift, axis=(1, 2)) == pytest.approx(0, abs=1e-4)
        for values in shift[:, 0, 0].T:
            assert -7.001 < values.min() < -6.7
            assert 6.7 < values.max() < 7.001

    def test_rotations_reach_their_degrees_and_keep_distances(self):
        """A degree is one on pictures that are not square, too; the middle stays where it is."""
        places, own = places_of((20, 30), rotate_degrees=12), middles((20, 30))
        assert np.linalg.norm(places, axis=-1) == pytest.approx(
            np.broadcast_to(np.linalg.norm(own, axis=-1), places.shape[:-1]), abs=1e-3)
        across = places[:, 4, 25] - places[:, 4, 5]
        degrees = np.degrees(np.arctan2(across[:, 1], across[:, 0]))
        assert -12.001 < degrees.min() < -11.5
        assert 11.5 < degrees.max() < 12.001
        assert np.median(np.abs(degrees)) == pytest.approx(6, abs=0.8)  # evenly between the bounds

    def test_width_and_height_change_by_at_most_so_many_per_cent_each_by_itself(self):
        """20 % wider: neighbours are taken from 1 / 1.2 of their distance."""
        places, own = places_of((20, 30), scale_percent=20), middles((20, 30))
        size = np.stack([(own[0, 29, 0] - own[0, 0, 0]) / (places[:, 0, 29, 0] - places[:, 0, 0, 0]),
                         (own[19, 0, 1] - own[0, 0, 1]) / (places[:, 19, 0, 1] - places[:, 0, 0, 1])], 1)
        assert 0.7999 < size.min() < 0.81
        assert 1.19 < size.max() < 1.2001
        assert abs(np.corrcoef(size.T)[0, 1]) < 0.25  # four deviations of 300 pairs

    def test_the_smooth_field_moves_no_point_further_than_its_mm(self):
        field = np.linalg.norm(places_of((40, 60), elastic_mm=8) - middles((40, 60)), axis=-1)
        assert 5 < field.max() < 8
        assert np.sqrt((field**2).mean()) == pytest.approx(8 * 0.28, rel=0.05)  # docs/training.md says so

    @pytest.mark.parametrize("bounds", [only(**LARGEST), only(elastic_mm=8)])
    def test_the_map_in_mm_is_the_same_at_any_number_of_pixels(self, bounds):
        """The middle of 3 x 3 small pixels lies in the middle of a large one."""
        assert places_of((48, 72), 20, **bounds)[:, 1::3, 1::3] == pytest.approx(
            places_of((16, 24), 20, **bounds), abs=1e-3)

    def test_the_map_is_that_of_a_slow_reference(self):
        """Rotation by its matrix, the field by SciPy's splines at each point; together they undo scale after turn."""
        bounds = {"rotate_degrees": 30, "shift_mm": 20, "scale_percent": 20, "elastic_mm": 6}
        found, own, half = places_of((8, 12), 2, **bounds), middles((8, 12)), np.array([100, 100 * 8 / 12])
        knots = np.arange(-3, 20) * augmentation.SPACING_MM
        for number in range(2):
            draws = 2 * random_numbers.uniform(0, "augmentation", 3, number, np.arange(8)).numpy() - 1
            angle = 2 * math.atan(draws[7] * math.tan(math.radians(15)))
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            forward = turn @ np.diag(1 + 0.2 * draws[3:5])
            for row, column in np.ndindex(8, 12):
                expected = np.linalg.solve(forward, own[row, column] - 20 * draws[1:3])
                x, y = own[row, column] + half
                for i, j in np.ndindex(10, 10):
                    weight = (BSpline.basis_element(knots[i:i + 5], extrapolate=False)(x),
                              BSpline.basis_element(knots[j:j + 5], extrapolate=False)(y))
                    if not np.isnan(weight).any():
                        point = random_numbers.uniform(0, "elastic", 3, number, np.arange(2), j, i).numpy()
                        expected = expected + (2 * point - 1) * 6 / math.sqrt(2) * np.prod(weight)
                assert found[number, row, column] == pytest.approx(expected, abs=1e-3)

    @pytest.mark.parametrize("signs", ["stripes", "squares", "corners"])
    def test_the_map_never_folds_even_at_the_largest_bounds_and_the_worst_draws(self, signs, monkeypatch):
        """All control points at their furthest, against each other; all else drawn likewise, at its extremes."""
        draws = np.random.default_rng(0)

        def extreme(seed, purpose, *numbers):
            shape = np.broadcast_shapes(*(np.shape(number) for number in numbers))
            if purpose != "elastic":
                return torch.from_numpy(draws.integers(0, 2, shape).astype(float))
            row, column = np.indices(shape[2:])
            pattern = {"stripes": column // 2 % 2, "squares": (row // 2 + column // 2) % 2,
                       "corners": draws.integers(0, 2, shape)}[signs]
            return torch.from_numpy(np.broadcast_to(pattern, shape).astype(float))

        monkeypatch.setattr(random_numbers, "uniform", extreme)
        step = 200 / 400

        def derivative(**bounds):
            places = places_of((400, 400), 8, **bounds)
            return np.stack([np.diff(places, axis=2)[:, :-1], np.diff(places, axis=1)[:, :, :-1]], -1) / step

        field = np.linalg.norm(derivative(elastic_mm=8) - np.eye(2), axis=(-2, -1))
        bound = 3 * 8 / math.sqrt(2) / augmentation.SPACING_MM
        assert bound / 2 < field.max() < bound + 0.01
        assert np.linalg.det(derivative(**LARGEST)).min() > 0.01

    def test_a_picture_is_as_wide_as_the_flag_says_or_extraction_or_else_224_mm(self):
        assert Augmentation(settings_of(), [], None).width_mm == 224
        assert Augmentation(settings_of(), [], 180.0).width_mm == 180
        assert Augmentation(settings_of(picture_mm=200), [], 180.0).width_mm == 200


class TestMoved:
    def test_moving_is_what_affine_grid_does_bit_for_bit(self, heads):
        """The priors' augmented copies were made with it, and their codes are kept on disk."""
        draws = torch.rand(7, 5, generator=torch.Generator().manual_seed(3))
        affine = torch.zeros(7, 2, 3)
        affine[:, 0, 0] = torch.where(draws[:, 0] < 0.5, -1.0, 1.0) * (1 + (draws[:, 3] * 2 - 1) * 0.05)
        affine[:, 1, 1] = 1 + (draws[:, 4] * 2 - 1) * 0.05
        affine[:, :, 2] = (draws[:, 1:3] * 2 - 1) * 0.06
        grid = functional.affine_grid(affine, list(heads.shape), align_corners=False)
        expected = functional.grid_sample(heads, grid, mode="bicubic", align_corners=False).clamp(0, 1)
        assert torch.equal(moved(heads, draws), expected)


class TestSettings:
    @pytest.mark.parametrize(("flags", "message"), [
        ("--augment --rotate-degrees 46", r"--rotate-degrees: expected 0 to 45°, found 46\.0"),
        ("--augment --shift-mm -1", r"--shift-mm: expected 0 to 50 mm, found -1\.0"),
        ("--augment --scale-percent 51", r"--scale-percent: expected 0 to 50 %, found 51\.0"),
        ("--augment --elastic-mm 8.1", r"--elastic-mm: expected 0 to 8 mm, found 8\.1"),
        ("--augment --elastic-mm nan", r"--elastic-mm: expected a finite number, found nan"),
        ("--augment --intensity-percent 60", r"--intensity-percent: expected 0 to 50 %, found 60\.0"),
        ("--augment --picture-mm 0", r"--picture-mm: expected 1 to 1000 mm, found 0\.0"),
        ("--shift-mm 2", r"--shift-mm: expected --augment beside it, found 2\.0 alone\. Give --augment too"),
        ("--no-mirror", r"--no-mirror: expected --augment beside it, found True alone\."),
        ("--picture-mm 180", r"--picture-mm: expected --augment beside it, found 180\.0 alone\.")])
    def test_a_bound_that_does_not_fit_is_refused(self, flags, message):
        with pytest.raises(UserError, match=message):
            parsing.parse(TrainVqvae, "", ["--savename", "v", "--epochs", "1", "--batch", "1", *flags.split()])

    def test_it_is_off_by_default_and_the_largest_bounds_are_let_through(self):
        assert not TrainVqvae(**RUN).augment
        assert dataclasses.asdict(settings_of(**LARGEST)).items() >= LARGEST.items()

    def test_a_run_that_was_augmented_before_there_were_bounds_does_not_go_on_with_others(self):
        new = settings_of()
        old = {name: value for name, value in parsing.as_dict(new).items() if name not in settings.AUGMENTATION}
        assert settings_module.changed_settings(new, old) == [
            "--rotate-degrees 5.0 (was 0.0)", "--shift-mm 5.0 (was 3 % of the picture)", "--elastic-mm 4.0 (was 0.0)"]
        as_near = dataclasses.replace(new, rotate_degrees=0.0, elastic_mm=0.0)
        assert settings_module.changed_settings(as_near, old) == ["--shift-mm 5.0 (was 3 % of the picture)"]

    def test_a_run_that_was_not_augmented_goes_on(self):
        new = TrainVqvae(**RUN)
        old = {name: value for name, value in parsing.as_dict(new).items() if name not in settings.AUGMENTATION}
        assert settings_module.changed_settings(new, old) == []
        assert settings_module.changed_settings(settings_of(), old) == ["--augment True (was False)"]

    def test_other_bounds_are_another_run(self):
        assert settings_module.changed_settings(settings_of(shift_mm=2), parsing.as_dict(settings_of())) == [
            "--shift-mm 2 (was 5.0)"]

    def test_the_script_says_what_the_old_run_did_and_leaves_it_alone(self, tiny_run, apart):
        run = Path("results/oasis/tiny")
        shutil.copytree(tiny_run.vqvae, run)
        found = json.loads((run / "config.json").read_text())
        found["settings"] = {name: value for name, value in found["settings"].items()
                             if name not in settings.AUGMENTATION} | {"augment": True}
        (run / "config.json").write_text(json.dumps(found))
        before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
        with pytest.raises(UserError, match=r"found .*--shift-mm 5\.0 \(was 3 % of the picture\), --elastic-mm 4\.0"):
            train_vqvae.main(["--data", str(tiny_run.data), "--savename", "tiny", "--augment", *TINY, *TINY_VQVAE])
        assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


class TestTraining:
    @pytest.mark.parametrize("augment", [False, True])
    def test_only_training_images_are_augmented_and_only_when_asked(self, augment, tiny_slices, tmp_path):
        trainer = vqvae.VqvaeTrainer(TrainVqvae(data=tiny_slices, savename="v", epochs=1, batch=4, seed=5,
                                                         results=tmp_path, augment=augment))
        trainer.device = torch.device("cpu")
        trainer.start()
        seen = []

        class Model(torch.nn.Module):
            def forward(self, pixels, place):
                seen.append(pixels.clone())
                nothing = torch.zeros(len(pixels))
                return SimpleNamespace(images=pixels, commitment=nothing, prediction=nothing, codebook=nothing)

        items = torch.tensor([3, 1])
        for model in (Model().train(), Model().eval()):
            trainer.losses(model, Share(items, torch.arange(2), 2, 7, 0))
        train, validate = (trainer.images.splits[split].batch(items) for split in ("train", "validate"))
        expected = Augmentation(trainer.settings, [{}] * 10, seed=5)(train, items, 7)
        assert torch.equal(seen[0], expected if augment else train)
        assert torch.equal(seen[0], train) is not augment
        assert torch.equal(seen[1], validate)

    @pytest.mark.parametrize(("text", "width"), [
        ('{"settings": {"planes": ["axial"], "extent": [0, 1], "size": 32, "field_of_view": 180, "bits": 8}}', 180),
        ('{"settings": {"planes": ["axial"], "extent": [0, 1], "size": 32}}', 224), (None, 224)])
    def test_it_knows_the_width_that_was_extracted_and_the_planes(self, text, width, tiny_slices, tmp_path):
        shutil.copytree(tiny_slices, tmp_path / "slices")
        manifest = tmp_path / "slices" / "manifest.csv"
        with manifest.open(newline="") as file:
            rows = list(csv.DictReader(file))
        planes = ["sagittal", "axial", "coronal"]
        with manifest.open("w", newline="") as file:
            table = csv.DictWriter(file, [*rows[0], *({"plane"} - set(rows[0]))])
            table.writeheader()
            table.writerows({**row, "plane": planes[number % 3]} for number, row in enumerate(rows))
        if text is not None:
            (tmp_path / "slices" / "extraction.json").write_text(text)
        trainer = vqvae.VqvaeTrainer(TrainVqvae(data=tmp_path / "slices", savename="v", epochs=1, batch=4,
                                                         results=tmp_path, augment=True, size=16, ssim_weight=0.03))
        trainer.start()
        assert trainer.augmentation.width_mm == width  # --size changes the pixels, not what they show
        number = {row["image"]: number for number, row in enumerate(rows)}
        assert trainer.augmentation.may_be_mirrored.tolist() == [
            number[name] % 3 > 0 for name in trainer.images.splits["train"].names]


def test_the_picture_of_the_manual_can_be_drawn_as_it_says(tiny_slices, apart, monkeypatch):
    """The code in docs/training.md, on other images."""
    page = Path(__file__).parents[2] / "docs" / "training.md"
    code = next(block for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
                if "Augmentation(" in block)
    assert "data/slices-128" in code
    exec(code.replace("data/slices-128", str(tiny_slices)).replace("[50]", "[3]"), {})
    assert (apart / "augmentation.png").stat().st_size > 1000
