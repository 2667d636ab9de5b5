"""predict.py as it is run: any images and scans in; codes, reconstructions, figures and pictures out."""

import csv
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, TINY_VQVAE, files_in, on_screen, picture_of
from PIL import Image
from scan_files import ellipsoid, save, save_analyze
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from vqvae2.commands import extract, predict, train_vqvae
from vqvae2.common.errors import UserError, run_script
from vqvae2.common.files import read_rows
from vqvae2.evaluation import prediction
from vqvae2.evaluation.prediction import PredictSettings, Source, read_all, resized
from vqvae2.models.autoencoder import load_vqvae
from vqvae2.plots import pictures
from vqvae2.runs import weights


@pytest.fixture
def run(tiny_run, apart):
    """Run predict.py with the tiny model; return its folder, the rows of metrics.csv by image, and metrics.json.

    Each time the folder is a new one, if it is not named.
    """
    def call(*arguments, out=None, vqvae=tiny_run.vqvae):
        out = out or f"out-{len(list(apart.glob('out-*')))}"
        predict.main(["--vqvae", str(vqvae), *map(str, arguments), "--out", out])
        with (apart / out / "metrics.csv").open(newline="") as file:
            rows = {row["image"]: row for row in csv.DictReader(file)}
        return apart / out, rows, json.loads((apart / out / "metrics.json").read_text())
    return call


@pytest.fixture
def unseen_images(tiny_slices):
    return sorted((tiny_slices / "test").glob("*.png"))


def picture(path, pixels=None, **options):
    """Write a picture, the head of subject 90 unless told; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture_of(90, 0) if pixels is None else pixels).save(path, **options)
    return path


def scan(path, seed=0, write=save, **options):
    """Write a small head: values within an ellipsoid, 0 around it."""
    values = np.random.default_rng(seed).integers(100, 900, (24, 28, 22)).astype(np.int16)
    return write(path, values * ellipsoid(values.shape, (9, 11, 8)), (6.0, 6.0, 7.0), **options)


def pixels(path):
    return np.asarray(Image.open(path))


class TestWhatIsMade:
    def test_reconstructions_are_what_the_codes_alone_give_back(self, run, tiny_run, unseen_images):
        out, rows, _ = run(*unseen_images[:3], "--batch", 2)
        model = load_vqvae(str(tiny_run.vqvae), torch.device("cpu")).model
        stored = np.load(out / "codes.npz")
        assert list(stored["image"]) == [f"reconstructions/{path.stem}.png" for path in unseen_images[:3]]
        assert list(rows) == [path.stem for path in unseen_images[:3]]
        for numbers in ([0, 1], [2]):  # the last bits depend on the batch
            given = np.stack([pixels(unseen_images[number]) for number in numbers])
            with torch.no_grad():
                codes = model.encode(torch.tensor(given / 255, dtype=torch.float32)[:, None])
                made = (model.decode(codes)[:, 0] * 255).round().byte().numpy()
            for place, number in enumerate(numbers):
                for level in ("top", "bottom"):
                    assert np.array_equal(stored[level][number], codes[level][place].numpy())
                written = out / "reconstructions" / unseen_images[number].name
                assert np.array_equal(pixels(written), made[place])

    def test_figures_are_those_of_scikit_image_on_the_files(self, run, unseen_images):
        out, rows, report = run(*unseen_images)
        similar = []
        for path in unseen_images:
            original, made = pixels(path), pixels(out / "reconstructions" / path.name)
            similar.append(structural_similarity(original, made, gaussian_weights=True, sigma=1.5, data_range=255,
                                                 use_sample_covariance=False))
            row = rows[path.stem]
            assert float(row["ssim"]) == pytest.approx(similar[-1], abs=1e-5)
            assert float(row["psnr"]) == pytest.approx(peak_signal_noise_ratio(original, made), abs=1e-3)
            assert float(row["brain_mae"]) > float(row["mae"]) > 0  # the background is easy
        assert report["images"] == len(similar) == 9
        assert report["reconstruction"]["full"]["ssim"]["mean"] == pytest.approx(np.mean(similar), abs=1e-6)
        assert report["reconstruction"]["full"]["ssim"]["min"] == pytest.approx(min(similar), abs=1e-6)

    def test_every_image_has_its_pictures_and_the_grid_the_first_eight(self, run, unseen_images):
        out, _, _ = run(*unseen_images)
        for path in unseen_images:
            assert Image.open(out / "pictures" / path.name).width == 5 * (pictures.LABEL_WIDTH + 130)
            for level in ("top", "bottom"):
                assert Image.open(out / "code_images" / f"{path.stem}_{level}.png").size == (128, 128)
        assert Image.open(out / "grid.png").width == pictures.LABEL_WIDTH + 8 * 130
        assert not (out / "originals").exists()  # nothing was changed
        assert not (out / "rejected.csv").exists()

    def test_one_level_has_one_map(self, run, tiny_slices, tmp_path_factory, unseen_images):
        results = tmp_path_factory.mktemp("one") / "results"
        train_vqvae.main(["--data", str(tiny_slices), "--results", str(results), *TINY, *TINY_VQVAE, "--levels", "1",
                          "--epochs", "1", "--savename", "one", "--start-steps", "1"])
        out, _, report = run(unseen_images[0], vqvae=results / "oasis" / "one")
        assert list(report["codes"]) == ["top"]
        assert sorted(np.load(out / "codes.npz")) == ["data_hash", "image", "top", "vqvae_hash"]
        assert [path.name for path in (out / "code_images").iterdir()] == [f"{unseen_images[0].stem}_top.png"]


class TestScans:
    def test_slices_are_those_of_extract_slices(self, run, apart):
        for seed, subject in enumerate(("p1", "p2")):
            scan(apart / "scans" / f"{subject}.nii.gz", seed, storage=("RAS", "PIL")[seed])
        chosen = ["--per-scan", "2", "--planes", "axial", "sagittal", "--extent", "0.2", "0.9",
                  "--field-of-view", "150"]
        extract.main(["--scans", "scans", "--out", "slices", "--size", "32", "--workers", "1", *chosen])
        expected = {path.stem: pixels(path) for path in (apart / "slices").rglob("*.png")}
        out, rows, report = run("scans", *chosen)
        assert set(rows) == set(expected)
        assert len(expected) == 8
        for name, cut in expected.items():
            assert np.array_equal(pixels(out / "originals" / f"{name}.png"), cut)
        assert {(row["subject"], row["plane"]) for row in rows.values()} == {
            (subject, plane) for subject in ("p1", "p2") for plane in ("axial", "sagittal")}
        assert (report["subjects"], report["subjects_known"]) == (2, True)
        assert report["slices"]["extent"] == {"value": [0.2, 0.9], "from": "flag"}

    def test_a_named_scan_may_have_any_name_and_a_pair_is_one_scan(self, run, apart):
        header = scan(apart / "OAS1_0007_MR1" / "T88_111" / "lesion_mask.hdr", write=save_analyze)
        out, rows, _ = run(header, header.with_suffix(".img"))
        assert [(row["subject"], row["input"]) for row in rows.values()] == [("OAS1_0007", str(header))]
        assert next(iter(rows)).startswith("lesion_mask_axial")  # its layout says how it is stored: nothing was assumed
        assert (out / "originals").is_dir()

    def test_a_scan_is_cut_within_the_brain_mask_beside_it(self, run, apart):
        path = scan(apart / "p1_T1.nii")

        def original(*more):
            [name] = (run(path, *more)[0] / "originals").iterdir()
            return pixels(name)

        whole = original()
        save(apart / "p1_brain_mask.nii", ellipsoid((24, 28, 22), (5, 6, 5)).astype(np.int16), (6.0, 6.0, 7.0))
        assert 0 < (original() > 0).sum() < (whole > 0).sum() / 2
        assert np.array_equal(original("--mask-suffix", "none"), whole)

    def test_without_an_orientation_the_flag_is_asked_for(self, run, refusal, tiny_run, apart):
        header = scan(apart / "p1.hdr", write=save_analyze)
        said = refusal(predict.main, "--vqvae", tiny_run.vqvae, header, "--out", "out")
        assert "p1.hdr: expected an orientation in its header, found none" in said
        assert "--assume-orientation" in said
        assert len(run(header, "--assume-orientation", "LAS")[1]) == 1

    def test_the_model_says_how_its_slices_were_cut_and_a_flag_beats_it(self):
        settings = PredictSettings(vqvae="m", input=(Path("a"),), out=Path("out"), field_of_view=100)
        recorded = {"planes": ["coronal"], "extent": [0.1, 0.2], "field_of_view": 180, "bits": 16, "size": 512}
        cutting = settings.cutting(recorded, 64)
        assert (cutting.planes, cutting.extent, cutting.field_of_view, cutting.bits, cutting.size) == (
            ("coronal",), (0.1, 0.2), 100, 16, 64)
        assert settings.cutting({}, 64).extent == (0.3, 0.8)

    def test_pictures_beside_scans_are_left_out_and_said_so(self, run, apart, capsys):
        scan(apart / "scans" / "p1.nii")
        picture(apart / "scans" / "preview.png")
        _, rows, _ = run("scans")
        assert [row["subject"] for row in rows.values()] == ["p1"]
        assert "left out 1 pictures" in capsys.readouterr().out


class TestForm:
    def test_resizing_averages_areas_and_keeps_proportions(self):
        wide = np.array([[[10, 20, 200, 200], [30, 40, 100, 100]]], np.uint8)
        assert resized(wide, 2, 2).tolist() == [[[25, 150], [0, 0]]]
        assert resized(np.full((1, 2, 4), 60000, np.uint16), 8, 8)[0, :, 3].tolist() == [0, 0, *4 * [60000], 0, 0]

    def test_colours_are_averaged_for_a_grey_model_and_grey_is_repeated_for_colours(self, apart):
        colours = np.zeros((32, 32, 3), np.uint8)
        colours[..., 0], colours[..., 1] = 200, 40
        paths = [picture(apart / "colours.png", colours), picture(apart / "grey.png")]
        [grey, same] = read_all([Source(path, None, True) for path in paths], None, (1, 32, 32), None)[0]
        assert (np.unique(grey.pixels).tolist(), grey.changes) == ([80], ("colours made grey",))
        assert (same.pixels.shape, same.changes) == ((1, 32, 32), ())
        [_, repeated] = read_all([Source(path, None, True) for path in paths], None, (3, 32, 32), None)[0]
        assert np.array_equal(repeated.pixels, np.repeat(picture_of(90, 0)[None], 3, 0))

    def test_where_training_stretched_images_they_are_read_as_it_read_them(self, apart):
        path = picture(apart / "wide.png", np.tile(np.arange(96, dtype=np.uint8), (64, 1)))
        [image] = read_all([Source(path, None, True)], None, (1, 32, 32), 32)[0]
        assert image.changes == ("stretched from 96 by 64",)
        expected = Image.open(path).resize((32, 32), Image.Resampling.BOX)
        assert np.array_equal(image.pixels[0], np.asarray(expected))

    def test_16_bits_give_the_codes_of_8_bits_alone_and_mixed(self, run, apart):
        shallow = picture_of(90, 0)
        picture(apart / "shallow.png", shallow)
        picture(apart / "deep.png", shallow.astype(np.uint16) * 257)
        mixed = np.load(run("shallow.png", "deep.png")[0] / "codes.npz")
        alone = np.load(run("deep.png", out="alone")[0] / "codes.npz")
        for level in ("top", "bottom"):
            assert np.array_equal(mixed[level][0], mixed[level][1])
            assert np.array_equal(mixed[level][1], alone[level][0])

    def test_images_of_other_kinds_are_brought_to_the_models_size_with_a_word(self, run, apart, capsys):
        picture(apart / "photo.jpg", np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
        out, rows, report = run("photo.jpg")
        assert rows["photo"]["changes"] == "colours made grey; resized from 60 by 40, black borders"
        assert pixels(out / "originals" / "photo.png").shape == (32, 32)
        assert report["changes"]["resized"] == 1
        said = capsys.readouterr().out
        assert "resized: 1 of 1 image(s), to the size that the model was trained at; --size N for another" in said

    def test_another_size_must_be_divided_by_the_factors(self, run, refusal, tiny_run, apart):
        path = picture(apart / "brain.png", picture_of(90, 0, 64))
        out, _, report = run(path, "--size", 64)
        assert (report["size"], report["trained_at"]) == ([64, 64], [32, 32])
        assert np.load(out / "codes.npz")["bottom"].shape == (1, 16, 16)
        assert "--size: expected a multiple of 8, the pixels of a top code" in refusal(
            predict.main, "--vqvae", tiny_run.vqvae, path, "--out", "other", "--size", 60)


class TestWhatCannotBeRead:
    @pytest.fixture
    def damaged(self, apart):
        path = picture(apart / "good" / "whole.png")
        cut = apart / "good" / "cut.png"
        cut.write_bytes(path.read_bytes()[:200])
        return cut

    def test_named_it_is_an_error_before_anything_is_written(self, refusal, tiny_run, damaged, apart):
        said = refusal(predict.main, "--vqvae", tiny_run.vqvae, damaged.with_name("whole.png"), damaged, "--out", "out")
        assert f"{damaged}: expected a readable image, found" in said
        assert not (apart / "out").exists()

    def test_in_a_folder_it_is_a_row_and_the_rest_is_done(self, run, damaged, capsys):
        out, rows, report = run(damaged.parent)
        assert (list(rows), report["rejected"]) == (["whole"], 1)
        [row] = csv.DictReader((out / "rejected.csv").read_text().splitlines())
        assert row["input"] == str(damaged)
        assert row["reason"].startswith("expected a readable image, found")
        assert f"not read: {damaged}: expected a readable image" in capsys.readouterr().out

    def test_a_folder_of_nothing_else_is_an_error(self, refusal, tiny_run, damaged, apart):
        damaged.with_name("whole.png").unlink()
        said = refusal(predict.main, "--vqvae", tiny_run.vqvae, damaged.parent, "--out", "out")
        assert "INPUT: expected at least one image or scan that can be read, found none among 1, such as" in said
        assert not (apart / "out").exists()

    @pytest.mark.parametrize(("name", "said"), [
        ("notes.txt", "a folder of them, found a file of another kind. Leave it out"),
        ("empty", "expected images or scans in this folder, found none. Correct the path."),
        ("texts", "expected images or scans in this folder, found none. Correct the path."),
        ("masks", "found only 1 scans whose names are not of T1-weighted ones. Give --suffix, or name the files."),
        ("absent.png", "a folder of them, found nothing. Correct the path."),
        ("text.nii", "text.nii: expected a NIfTI, Analyze or MGH image, found text ('hello')")])
    def test_other_things_are_named_with_what_to_do(self, refusal, tiny_run, apart, name, said):
        for folder in ("empty", "texts", "masks"):
            (apart / folder).mkdir()
        for path in ("notes.txt", "texts/a.csv", "text.nii", "masks/p1_mask.nii"):
            (apart / path).write_text("hello")
        assert said in refusal(predict.main, "--vqvae", tiny_run.vqvae, name, "--out", "out")
        assert not (apart / "out").exists()

    def test_no_input_is_an_error(self):
        with pytest.raises(UserError, match=r"INPUT: expected at least one image, scan or folder, found none\. Na"):
            predict.main(["--vqvae", "m", "--out", "out"])

    def test_a_prior_is_not_taken_for_a_vqvae(self, refusal, tiny_run, apart):
        path = picture(apart / "brain.png")
        assert "expected a VQ-VAE, found a" in refusal(predict.main, "-m", tiny_run.top, path, "--out", "out")


class TestFolder:
    @pytest.mark.parametrize(("more", "found"), [
        ((), r"INPUT \S*axial\d+\.png \(was \S*"), (("--size", 64), r"INPUT .*, --size 64 \(was None\)")])
    def test_another_runs_folder_is_refused_with_what_differs_and_nothing_in_it_changes(
            self, more, found, run, refusal, tiny_run, apart, unseen_images):
        before = files_in(run(unseen_images[0], out="out")[0])
        said = refusal(predict.main, "--vqvae", tiny_run.vqvae, unseen_images[1], "--out", "out", *more)
        assert re.search(rf"^--out out: expected the settings that its images were made with, found {found}", said)
        assert said.endswith("Give those again, or choose another --out.")
        assert files_in(apart / "out") == before

    def test_another_model_under_the_same_name_is_refused(self, run, refusal, tiny_run, apart, unseen_images):
        shutil.copytree(tiny_run.vqvae, apart / "model")
        run(unseen_images[0], out="out", vqvae="model")
        tensors, config = weights.load_weights(apart / "model" / weights.WEIGHTS)
        tensors["to_top.bias"] += 1
        weights.save_weights(apart / "model" / weights.WEIGHTS, tensors, config)
        said = refusal(predict.main, "--vqvae", "model", unseen_images[0], "--out", "out")
        assert "found --vqvae model (was model, which has changed). Give those again" in said

    def test_the_same_command_again_makes_nothing_and_says_the_same(self, run, unseen_images, monkeypatch, capsys):
        out, _, _ = run(*unseen_images[:2], out="out")
        before, said = files_in(out), capsys.readouterr().out
        monkeypatch.setattr(prediction, "reconstruct_all", None)
        run(*unseen_images[:2], out="out")
        assert files_in(out) == before
        assert capsys.readouterr().out == "2 of 2 images are there already\n" + said

    @pytest.mark.parametrize(("killed_after", "made_again"), [(1, 14), (9, 14), (13, 11)])
    def test_a_stopped_run_goes_on_and_leaves_the_bytes_of_an_undisturbed_one(
            self, killed_after, made_again, run, unseen_images, apart, monkeypatch):
        """14 images; the batches of the first 9 are made again, since the grid shows the first 8."""
        def counted(out, given, name, *rest):
            if len(made) == killed_after:
                (out / prediction.PARTS / ".half.tmp.npz").write_text("written half")
                made.append("not this one")
                raise KeyboardInterrupt("killed here")
            made.append(name)
            write(out, given, name, *rest)

        for number in range(5):
            picture(apart / "given" / f"{number}.png", picture_of(70 + number, 1))
        given, write, made = [*unseen_images[:9], apart / "given", "--batch", 3], prediction._write, []
        whole, _, _ = run(*given, out="whole/out")
        with monkeypatch.context() as patched:
            patched.setattr(prediction, "_write", counted)
            with pytest.raises(KeyboardInterrupt, match="killed here"):
                run(*given, out="stopped/out")
            assert not (apart / "stopped" / "out" / "metrics.json").exists()
            stopped, _, _ = run(*given, out="stopped/out")
        assert files_in(stopped) == files_in(whole)
        assert len(made) == killed_after + 1 + made_again

    @pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="there names of files are Unicode")
    def test_a_name_whose_bytes_are_not_utf_8_is_read_written_and_gone_on_with(self, run, apart, capsys):
        name = picture(apart / "in\udcff" / "a\udcff.png").parent
        out, rows, _ = run(name, out="out")
        assert rows.keys() == {r"a\udcff"}
        assert (out / "pictures" / "a\udcff.png").is_file()
        run(name, out="out")
        assert "1 of 1 images are there already" in capsys.readouterr().out

    def test_the_files_that_cannot_be_read_now_are_listed_where_all_images_are_there_already(self, run, apart):
        folder = picture(apart / "in" / "good.png").parent
        (folder / "first.png").write_bytes(b"no picture")
        out, _, _ = run(folder, out="out")
        (folder / "first.png").rename(folder / "second.png")
        run(folder, out="out")
        assert [Path(row["input"]).name for row in read_rows(out / "rejected.csv")] == ["second.png"]

    def test_images_that_came_or_went_in_a_folder_are_made_or_removed(self, run, apart, unseen_images):
        paths = [shutil.copy(path, (apart / "in").mkdir(exist_ok=True) or apart / "in") for path in unseen_images[:2]]
        run("in", out="a/out")
        Path(paths[0]).unlink()
        shutil.copy(unseen_images[2], apart / "in")
        assert files_in(run("in", out="a/out")[0]) == files_in(run("in", out="b/out")[0])

    def test_a_signal_ends_it_with_75_and_a_line(self, tiny_run, apart, unseen_images, monkeypatch, capsys):
        monkeypatch.setattr(prediction, "table_of", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit, match="75"):
            run_script(lambda: predict.main(["--vqvae", str(tiny_run.vqvae), str(unseen_images[0]), "--out", "out"]))
        assert on_screen(capsys.readouterr().err) == [
            "Stopped by a signal, all finished images saved: out. The same command goes on from here."]

    @pytest.mark.parametrize("name", ["metrics.json", "codes.npz", "reconstructions/mine.png"])
    def test_others_files_are_never_replaced(self, refusal, tiny_run, apart, unseen_images, name):
        path = apart / "out" / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        said = refusal(predict.main, "--vqvae", tiny_run.vqvae, unseen_images[0], "--out", "out")
        assert f"found {name.split('/')[0]} and no predict.json. Choose another --out." in said
        assert files_in(apart / "out").keys() == {name}

    def test_a_damaged_record_leads_nowhere_else(self, run, apart, unseen_images):
        out, _, _ = run(unseen_images[0], out="out")
        victim, record = picture(apart / "victim.png"), json.loads((out / "predict.json").read_text())
        (out / "predict.json").write_text(json.dumps(record | {"images": ["../../victim", 7]}))
        run(unseen_images[0], out="out")
        assert victim.exists()

    def test_a_record_that_cannot_be_read_is_refused(self, run, refusal, tiny_run, unseen_images):
        (run(unseen_images[0], out="out")[0] / "predict.json").write_text("{")
        said = refusal(predict.main, "--vqvae", tiny_run.vqvae, unseen_images[0], "--out", "out")
        assert re.search(r"^out/predict\.json: expected settings that predict\.py wrote, found .*\. Delete the f", said)

    def test_inputs_in_the_folder_that_receives_are_refused(self, refusal, tiny_run, run, unseen_images, apart):
        out, _, _ = run(unseen_images[0], out="out")
        said = refusal(predict.main, "--vqvae", tiny_run.vqvae, out / "reconstructions", "--out", "out")
        assert "--out out: expected a folder that holds none of the inputs, found" in said

    def test_a_folder_above_is_read_without_what_was_written_into_it(self, run, apart, unseen_images):
        shutil.copy(unseen_images[0], apart)
        for _ in range(2):
            _, rows, _ = run(apart, out="out")
        assert list(rows) == [unseen_images[0].stem]

    def test_of_a_folder_of_samples_the_images_are_read_and_their_grid_is_not(self, run, apart):
        for name in ("images/000000.png", "images/000001.png", "grid.png"):
            picture(apart / "samples" / name)
        (apart / "samples/sample.json").write_text("{}")
        picture(apart / "others/grid.png")  # nobody's grid of samples
        assert run("samples", "others")[1].keys() == {"000000", "000001", "grid"}

    def test_equal_names_get_a_hash_and_a_file_given_twice_counts_once(self, run, apart, tiny_slices):
        for folder in ("a", "b"):
            picture(apart / folder / "brain.png", picture_of(len(folder) + ord(folder), 0))
        out, rows, _ = run("a", "b/brain.png", "a/brain.png")
        assert len(rows) == 2
        assert all(name.startswith("brain_") for name in rows)
        assert {path.stem for path in (out / "reconstructions").iterdir()} == set(rows)


class TestTrainedOn:
    def test_images_of_the_training_are_counted_and_warned_about(self, run, tiny_slices, unseen_images, capsys):
        train = sorted((tiny_slices / "train").glob("*.png"))
        _, rows, report = run(*train[:2], unseen_images[0])
        assert report["seen_in_training"] == {"images": 2, "subjects": 0}
        assert [row["seen_in_training"] for row in rows.values()] == ["1", "1", "0"]
        assert "warning: the model was trained on 2 of these images" in capsys.readouterr().out
        assert run(unseen_images[0])[2]["seen_in_training"]["images"] == 0
        assert "warning" not in capsys.readouterr().out

    def test_scans_of_subjects_of_these_names_are_counted(self, run, apart):
        scan(apart / "scans" / "OAS1_0001_MR1.nii.gz")  # of train
        scan(apart / "scans" / "OAS1_0011_MR1.nii.gz", 1)  # of test
        assert run("scans")[2]["seen_in_training"] == {"images": 0, "subjects": 1}

    def test_pictures_whose_names_say_a_case_that_was_trained_on_are_counted(self, run, apart, tiny_slices):
        """As --dataset keras_png_slices has them; the pictures themselves are others."""
        for number, split in enumerate(("train", "train", "validate", "test")):
            picture(apart / f"keras_png_slices_{split}" / f"case_{number:03d}_slice_0.nii.png", picture_of(number, 0))
        train_vqvae.main(["--dataset", "keras_png_slices", "--data", str(apart), "--results", str(apart / "results"),
                          *TINY, *TINY_VQVAE, "--levels", "1", "--epochs", "1", "--savename", "k"])
        for number in (1, 3):
            picture(apart / "others" / f"case_{number:03d}_slice_7.nii.png", picture_of(40 + number, 0))
        _, _, report = run("others", vqvae=apart / "results" / "keras_png_slices" / "k")
        assert report["seen_in_training"] == {"images": 0, "subjects": 1}
        assert (report["subjects"], report["subjects_known"]) == (2, True)
