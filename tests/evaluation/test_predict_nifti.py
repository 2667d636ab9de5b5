"""predict.py --nifti as it is run: scans in; a BIDS derivative on the scans' own grids, figures and a page out."""

import csv
import gzip
import json
import os
import re
import shutil
import subprocess

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import files_in
from scan_files import ellipsoid, save, save_analyze

import vqvae2
from vqvae2.commands import predict
from vqvae2.evaluation import whole_scans
from vqvae2.models.autoencoder import load_vqvae
from vqvae2.scans.brain import find_brain
from vqvae2.scans.volumes import read_volume
from vqvae2.slices import planes

VALIDATOR = shutil.which("bids-validator-deno")
SUB1 = "sub-01/anat/sub-01_desc-{}"


def scan(path, seed=0, write=save, kind=np.int16, **options):
    """Write a small head: values within an ellipsoid, 0 around it."""
    values = np.random.default_rng(seed).integers(100, 255, (24, 28, 22)).astype(kind)
    return write(path, values * ellipsoid(values.shape, (8.5, 10.5, 7.5)).astype(kind), (6.0, 6.0, 7.0), **options)


@pytest.fixture
def study(apart):
    """A BIDS data set of two people, in a folder whose name nobody else is to know."""
    root = apart / "secret place" / "study"
    scan(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz", 1, storage="PIL")
    scan(root / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_run-1_T1w.nii.gz", 2, storage="LAS")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "Study", "BIDSVersion": "1.8.0"}))
    return root


@pytest.fixture
def run(tiny_run, apart):
    """Run predict.py --nifti with the tiny model; return its folder, the rows of metrics.csv and metrics.json."""
    def call(*arguments, out="out", vqvae=(tiny_run.vqvae,)):
        predict.main([*map(str, arguments), "--nifti", "--vqvae", *map(str, vqvae), "--out", str(out)])
        with (apart / out / "metrics.csv").open(newline="") as file:
            return apart / out, list(csv.DictReader(file)), json.loads((apart / out / "metrics.json").read_text())
    return call


class TestWhatIsMade:
    def test_a_derivative_of_the_data_set_with_every_scan_on_its_own_grid(self, run, study):
        out, rows, report = run(study)
        codes = [f"axial{level}codes_dseg" for level in ("top", "bottom")]
        names = [f"{stem}_desc-{label}" for stem in ("sub-01/anat/sub-01", "sub-02/ses-a/anat/sub-02_ses-a_run-1")
                 for label in ("reconstruction_T1w", *codes)]
        assert {name for name in files_in(out) if name.startswith("sub-")} == {
            f"{name}{ending}" for name in names for ending in (".nii.gz", ".json")}
        assert [row["scan"] for row in rows] == [f"{name}.nii.gz" for name in names if "reconstruction" in name]
        assert (report["scans"], report["rejected"], report["subjects"]) == (2, 0, 2)
        for path, made in zip(sorted(study.rglob("*T1w.nii.gz")), sorted(out.rglob("*reconstruction_T1w.nii.gz"))):
            assert gzip.decompress(made.read_bytes())[:352] == gzip.decompress(path.read_bytes())[:352]
        description = json.loads((out / "dataset_description.json").read_text())
        assert description["DatasetType"] == "derivative"
        assert description["SourceDatasets"] == [{"Name": "Study"}]
        assert "metrics.csv" in (out / ".bidsignore").read_text().split()

    @pytest.mark.skipif(VALIDATOR is None, reason="bids-validator-deno is not installed")
    def test_the_validator_of_bids_finds_no_error(self, run, study, tiny_run):
        out, _, _ = run(study, "--top", tiny_run.top, "--bottom", tiny_run.bottom)
        said = subprocess.run([VALIDATOR, "--json", out], capture_output=True, check=False, text=True).stdout
        issues = json.loads(said)["issues"]["issues"]
        assert issues  # such as the units, which these scans' own headers do not say
        assert not [issue for issue in issues if issue["severity"] == "error"]

    def test_the_voxels_are_those_of_the_decoded_codes_put_back(self, run, study, tiny_run):
        out, _, _ = run(study / "sub-01" / "anat" / "sub-01_T1w.nii.gz", "--extent", "0.2", "0.9", "--batch", "3")
        volume = read_volume(study / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
        brain = find_brain(volume)
        model = load_vqvae(str(tiny_run.vqvae), torch.device("cpu")).model
        expected, codes_there = np.zeros(volume.voxels.shape), np.full(volume.voxels.shape, -1)
        inside = [index for index in range(brain.start[2], brain.stop[2])
                  if 0.2 <= (index + 0.5 - brain.start[2]) / (brain.stop[2] - brain.start[2]) <= 0.9]
        for index in inside:
            given = np.rint(planes.draw_plane(volume, brain, 2, index, 32, 224) * 255) / 255
            with torch.no_grad():
                codes = model.encode(torch.tensor(given, dtype=torch.float32)[None, None])
                made = model.decode(codes)[0, 0].numpy()
            seen = planes.plane_of(volume, brain, 2, index)
            values, known = planes.put_back(np.rint(made * 255) / 255, volume, brain, 2, seen, 224)
            expected[seen.part] = np.where(known, np.rint(brain.low + values * (brain.high - brain.low)), 0)
            placed, within = planes.put_map_back(codes["bottom"][0].numpy(), volume, brain, 2, 224, nearest=True)
            codes_there[seen.part] = np.where(known & within, placed, -1)
        again = read_volume(out / SUB1.format("reconstruction_T1w.nii.gz")).voxels
        assert np.abs(again - expected).max() <= 2  # the last bits depend on the batch
        assert np.array_equal(again != 0, expected != 0)
        written = nib.as_closest_canonical(nib.load(out / SUB1.format("axialbottomcodes_dseg.nii.gz")))
        assert (np.asarray(written.dataobj) == codes_there).mean() > 0.999
        assert written.get_data_dtype() == np.int16

    def test_the_sidecar_says_where_from_and_by_what_without_any_path_of_the_machine(self, run, study, tiny_run):
        out, rows, report = run(study)
        said = json.loads((out / SUB1.format("reconstruction_T1w.json")).read_text())
        assert said["Sources"] == ["sub-01/anat/sub-01_T1w.nii.gz"]
        assert said["VQVAE"][0]["Hash"] == report["vqvae_hash"] == load_vqvae(
            str(tiny_run.vqvae), torch.device("cpu")).hash
        assert (said["VQVAE"][0]["Planes"], said["VQVAE"][0]["ImageSize"]) == (["axial"], 32)
        assert (said["SkullStripped"], said["Orientation"]) == (True, "PIL")
        assert said["Figures"]["volume_mae"] == pytest.approx(float(rows[0]["volume_mae"]), rel=1e-4)
        for path in [*out.rglob("*_*.json"), out / "dataset_description.json", out / ".bidsignore",
                     *out.rglob("*.nii.gz")]:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert b"secret place" not in content
            assert str(tiny_run.vqvae).encode() not in content

    def test_figures_and_page_tell_the_resampling_from_the_model(self, run, study, capsys):
        out, rows, report = run(study)
        assert all(0 < float(row["resampling_mae"]) < float(row["volume_mae"]) < 1 for row in rows)
        mean = np.mean([float(row["volume_mae"]) for row in rows])
        assert report["reconstruction"]["volume_mae"]["mean"] == pytest.approx(mean, rel=1e-4)
        page = (out / "index.html").read_text()
        assert page.count("<figure>") == 2
        assert "sub-02_ses-a_run-1_desc-reconstruction_T1w" in page
        said = capsys.readouterr().out
        assert "2 scan(s), 28 planes; 0 file(s) not read" in said
        assert "volumes: mean absolute difference inside the brain" in said

    def test_several_models_are_averaged_and_each_has_its_codes(self, run, study, tiny_run):
        path = study / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
        out, rows, report = run(path, "--planes", "sagittal", "axial", vqvae=(tiny_run.vqvae, tiny_run.vqvae))
        one = {plane: run(path, "--planes", plane, out=plane)[0] for plane in ("sagittal", "axial")}
        both, *single = (nib.load(folder / SUB1.format("reconstruction_T1w.nii.gz")).get_fdata()
                         for folder in (out, *one.values()))
        assert np.abs(both - np.mean(single, 0)).max() <= 1
        assert len(list(out.rglob("*codes_dseg.nii.gz"))) == 4
        assert (rows[0]["planes"], len(report["models"])) == (str(16 + 14), 2)

    def test_priors_give_a_map_of_what_is_unlikely(self, run, study, tiny_run):
        path = study / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
        out, _, report = run(path, "--top", tiny_run.top, "--bottom", tiny_run.bottom)
        image = nib.load(out / SUB1.format("bitsperpixel_T1w.nii.gz"))
        values = image.get_fdata()
        assert image.get_data_dtype() == np.float32
        inside = nib.load(path).get_fdata() != 0
        assert np.array_equal(values != 0, inside)
        # 16 codes cost 4 bits; there is a top code for 64 pixels and a bottom code for 16
        assert 0.01 < values[inside].mean() < 3 * (4 / 64 + 4 / 16)
        assert report["top_hash"]
        assert 0.5 < report["reconstruction"]["bits_per_code"]["mean"] / report["usual_bits_per_code"][0] < 3
        assert json.loads((out / SUB1.format("bitsperpixel_T1w.json")).read_text())["VQVAE"][0]["TopPriorHash"]

    def test_restored_there_is_a_map_of_what_does_not_belong_inside_the_brain_alone(self, run, study, tiny_run):
        out, _, _ = run(study / "sub-01", "--restore", "--top", tiny_run.top, "--bottom", tiny_run.bottom)
        shown, made = (np.asarray(nib.load(out / f"{SUB1.format(label)}_T1w.nii.gz").dataobj)
                       for label in ("restoration", "reconstruction"))
        assert shown.dtype == np.float32
        assert 0 < shown.max() <= 1
        assert (shown[made == 0] == 0).all()
        said = json.loads((out / f"{SUB1.format('restoration')}_T1w.json").read_text())
        assert said["Description"].startswith("What does not belong")

    def test_a_scan_of_another_contrast_is_told_apart(self, run, study, monkeypatch, capsys):
        """The first has an unlikeness of 5 and not of 1; the second would fit better on its side."""
        monkeypatch.setattr(whole_scans.scan_maps, "_fit", lambda model, split: {
            "unlikeness": [5.0 if file.facts["subject"] == "01" else 1.0 for file in split.files],
            "turned": [0.1 if file.facts["subject"] == "02" else -0.1 for file in split.files],
            "inverted": [-0.5] * len(split)})
        _, rows, report = run(study)
        assert [row["unlikeness"] for row in rows] == ["5", "1"]
        assert report["unlike_training"] == {"unlikeness": [rows[0]["scan"]], "turned": [rows[1]["scan"]],
                                             "inverted": []}
        said = capsys.readouterr().out
        assert re.search("warning: the planes of 1 scan.* such as sub-01/.* are unlike those of training", said)
        assert re.search("warning: the planes of 1 scan.* such as sub-02/.* look turned by 90 degrees", said)

    def test_from_python_too(self, study, tiny_run, apart):
        report = vqvae2.predict(tiny_run.vqvae, [study], apart / "out", nifti=True)
        assert report["scans"] == 2

    def test_analyze_is_written_as_nifti(self, run, apart):
        scan(apart / "OAS1_0007_MR1" / "T88_111" / "OAS1_0007_MR1_mpr_n4_anon_111_t88_masked_gfc.hdr",
             write=save_analyze, storage="LAS")
        out, rows, _ = run("OAS1_0007_MR1")
        image = nib.load(out / rows[0]["scan"])
        assert nib.aff2axcodes(image.affine) == ("L", "A", "S")
        assert rows[0]["scan"].startswith("sub-OAS10007/ses-MR1/anat/sub-OAS10007_ses-MR1")


class TestGoingOn:
    def test_what_is_there_is_not_made_again_and_what_is_missing_is(self, run, study, capsys):
        out, rows, _ = run(study)
        before = files_in(out)
        kept = out / SUB1.format("reconstruction_T1w.nii.gz")
        time = kept.stat().st_mtime_ns
        capsys.readouterr()
        assert run(study)[1] == rows
        assert "2 of 2 scans are there already" in capsys.readouterr().out
        next(out.glob("sub-02/**/*topcodes_dseg.nii.gz")).unlink()
        run(study)
        assert files_in(out) == before
        assert kept.stat().st_mtime_ns == time

    def test_after_a_kill_only_the_unfinished_scan_is_made(self, run, study, monkeypatch):
        out, _, _ = run(study, out="whole")
        expected = files_in(out)
        written, real = [], whole_scans.files.write_json

        def killed(path, values):
            if "sub-02" in str(path):
                raise KeyboardInterrupt("killed at sub-02")
            real(path, values)
        monkeypatch.setattr(whole_scans.files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt, match="killed at sub-02"):
            run(study)
        monkeypatch.setattr(whole_scans.files, "write_json", real)
        real_opened = whole_scans.scan_maps.open_scan
        monkeypatch.setattr(whole_scans.scan_maps, "open_scan",
                            lambda scan, cutting: written.append(scan.subject) or real_opened(scan, cutting))
        out, _, _ = run(study)
        assert written == ["02"]
        assert {name for name, content in files_in(out).items() if expected[name] != content} <= {
            "predict.json", "metrics.json"}  # they name the folder

    def test_what_is_not_given_any_more_is_removed(self, run, study):
        out, _, _ = run(study)
        (out / "sub-02" / "ses-a" / "anat" / "mine.txt").write_text("somebody's note")
        kept = [path for path in files_in(out) if path.startswith(("sub-01", "pictures/sub-01"))]
        shutil.rmtree(study / "sub-02")
        out, rows, _ = run(study)
        assert len(rows) == 1
        there = [path for path in files_in(out) if path.startswith(("sub-", "pictures/"))]
        assert there == sorted([*kept, "sub-02/ses-a/anat/mine.txt"])

    def test_a_scan_that_has_changed_is_made_anew(self, run, study):
        out, _, _ = run(study)
        before = files_in(out)
        scan(study / "sub-01" / "anat" / "sub-01_T1w.nii.gz", 7, storage="PIL")
        run(study)
        changed = {name for name, content in files_in(out).items() if before[name] != content}
        assert SUB1.format("reconstruction_T1w.nii.gz") in changed
        assert not any("sub-02" in name for name in changed)

    @pytest.mark.parametrize(("more", "said"), [
        (["--field-of-view", "200"], "--field-of-view 200.0 (was None)"),
        (["--planes", "coronal"], "--planes coronal")])
    def test_other_settings_need_another_folder(self, run, study, tiny_run, refusal, more, said):
        run(study)
        assert said in refusal(predict.main, study, "--nifti", "--vqvae", tiny_run.vqvae, "--out", "out", *more)

    def test_a_folder_of_images_does_not_become_one_of_scans(self, run, study, tiny_run, refusal):
        predict.main([str(study), "--vqvae", str(tiny_run.vqvae), "--out", "out"])
        said = refusal(predict.main, study, "--nifti", "--vqvae", tiny_run.vqvae, "--out", "out")
        assert "--nifti True (was False)" in said

    def test_a_data_set_of_somebody_else_is_not_written_into(self, study, tiny_run, refusal, apart):
        (apart / "other").mkdir()
        (apart / "other" / "dataset_description.json").write_text("{}")
        said = refusal(predict.main, study, "--nifti", "--vqvae", tiny_run.vqvae, "--out", "other")
        assert "--out other: expected a folder that predict.py made, or one without dataset_description.json" in said

    def test_below_the_scans_it_must_be_among_the_derivatives(self, run, study, tiny_run, refusal):
        said = refusal(predict.main, study, "--nifti", "--vqvae", tiny_run.vqvae, "--out", study / "made")
        assert "a folder outside of the scans, or below a folder derivatives, found" in said
        for _ in range(2):  # what was made is no scan of the second run
            assert run(study, out=study / "derivatives" / "made")[2]["scans"] == 2


class TestWhatCannotBeRead:
    def test_named_it_is_an_error_before_anything_is_written(self, study, tiny_run, refusal, apart):
        good, cut = (study / "sub-01" / "anat" / name for name in ("sub-01_T1w.nii.gz", "cut.nii.gz"))
        cut.write_bytes(good.read_bytes()[:-400])
        said = refusal(predict.main, good, cut, "--nifti", "--vqvae", tiny_run.vqvae, "--out", "out")
        assert "cut.nii.gz: expected a whole gzip file" in said
        assert not (apart / "out").exists()

    def test_in_a_folder_it_is_a_row_and_the_rest_is_done(self, run, study):
        path = study / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
        path.write_bytes(path.read_bytes()[:-400])
        out, rows, report = run(study)
        assert [row["subject"] for row in rows] == ["02"]
        assert report["rejected"] == 1
        [row] = csv.DictReader((out / "rejected.csv").read_text().splitlines())
        assert row["reason"].startswith("expected a whole gzip file")
        path.unlink()
        run(study)
        assert not (out / "rejected.csv").exists()

    def test_what_cannot_be_a_scan_by_its_place_is_a_row_too(self, run, study):
        os.mkfifo(study / "sub-03_T1w.nii.gz")
        out, rows, _ = run(study)
        [row] = csv.DictReader((out / "rejected.csv").read_text().splitlines())
        assert row["reason"] == "expected a file, found a named pipe. Move it out of the folder of scans."
        assert len(rows) == 2

    def test_a_folder_of_nothing_else_is_an_error(self, tiny_run, refusal, study, apart):
        for path in study.rglob("*T1w.nii.gz"):
            path.write_bytes(b"none")
        said = refusal(predict.main, study, "--nifti", "--vqvae", tiny_run.vqvae, "--out", "out")
        assert "INPUT: expected at least one scan that can be read, found none among 2" in said
        assert not (apart / "out").exists()

    def test_pictures_are_for_predict_without_the_flag(self, tiny_run, refusal, tiny_slices, apart):
        picture = next(tiny_slices.rglob("*.png"))
        said = refusal(predict.main, picture, "--nifti", "--vqvae", tiny_run.vqvae, "--out", "out")
        assert f"INPUT: expected scans alone, with --nifti, found {picture}. Leave pictures out" in said
        assert not (apart / "out").exists()


class TestFlags:
    def test_what_stands_behind_a_model_is_an_input_unless_it_is_a_model(self, tiny_run, study, apart):
        predict.main(["--nifti", "--vqvae", str(tiny_run.vqvae), str(study), "--out", "out"])
        assert json.loads((apart / "out" / "predict.json").read_text())["settings"]["input"] == [str(study)]

    @pytest.mark.parametrize(("flags", "said"), [
        (["--per-scan", "3"], "--per-scan: expected no number with --nifti, which takes every plane, found 3"),
        (["--top", "a", "b"], r"--top: expected one for each VQ-VAE \(.*tiny\), found a b"),
        (["--bottom", "TINY-bottom"], "--top and --bottom: expected a prior for each level of .*, found none for top"),
        (["--vqvae", "TINY", "TINY", "--decoder", "d"], "--decoder: expected one VQ-VAE, which it belongs to, found"),
        (["--vqvae", "TINY", "TINY"], "--vqvae: expected VQ-VAEs of different planes, found axial axial. Give"),
        (["--size", "64", "--top", "TINY-top", "--bottom", "TINY-bottom"], "--size: expected no other size beside")])
    def test_what_does_not_fit_is_refused(self, tiny_run, refusal, study, apart, flags, said):
        flags = [flag.replace("TINY", str(tiny_run.vqvae)) for flag in flags]
        given = [study, "--nifti", "--vqvae", tiny_run.vqvae, "--out", "out", *flags]
        line = refusal(predict.main, *given)
        assert re.search(said, line), line
        assert not (apart / "out").exists()

    def test_without_nifti_there_is_one_model_and_no_prior(self, tiny_run, refusal, study, apart):
        assert "--vqvae: expected one VQ-VAE, without --nifti, found" in refusal(
            predict.main, study, "--vqvae", tiny_run.vqvae, tiny_run.vqvae, "--out", "out")
        assert "--top: expected --nifti beside it" in refusal(
            predict.main, study, "--vqvae", tiny_run.vqvae, "--top", tiny_run.top, "--out", "out")
        assert os.listdir(apart) == ["secret place"]
