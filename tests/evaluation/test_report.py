"""metrics.json has the keys of design section 7, no NaN, and nothing about images that a model has seen."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from conftest import edit_manifest, files_in, on_screen
from PIL import Image

from vqvae2.commands import evaluate
from vqvae2.common import statistics
from vqvae2.common.errors import UserError, run_script
from vqvae2.evaluation import leaks
from vqvae2.evaluation import report as reports
from vqvae2.evaluation import text as report_text
from vqvae2.evaluation.judge import Judge
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.images.dataset import pixel_hash, subject_hash
from vqvae2.models import encoding

SUMMARY = {"mean", "min", "max", "q05", "median", "q95", "ci_low", "ci_high"}


def settings_for(run, out, **changes):
    models = {"vqvae": str(run.vqvae), "top": str(run.top), "bottom": str(run.bottom)}
    return EvaluateSettings(**{**models, "data": run.data, "out": out, "samples": 4, **changes})


@pytest.fixture(scope="module")
def judged(tiny_run, tmp_path_factory):
    """The folder that evaluate has filled, and what it returned."""
    out = tmp_path_factory.mktemp("report")
    return out, reports.evaluate(settings_for(tiny_run, out))


@pytest.fixture(scope="module")
def report(judged):
    def refuse(constant):
        raise AssertionError(f"metrics.json holds {constant}, which is not JSON")
    return json.loads((judged[0] / "metrics.json").read_text(), parse_constant=refuse)


def test_metrics_json_has_the_keys_of_the_schema_and_no_nan(report):
    assert {"schema", "data", "split", "subjects", "images", "seen_in_training", "reconstruction", "codes", "priors",
            "samples"} <= set(report)
    assert (report["schema"], report["split"], report["images"], report["subjects"]) == (1, "test", 9, 3)
    assert set(report["reconstruction"]) == {"full", "brain"}
    for area in report["reconstruction"].values():
        assert set(area) == {"ssim", "ms_ssim", "psnr", "mae"}
        assert all(set(figures) == SUMMARY for figures in area.values())
    assert set(report["codes"]) == {"top", "bottom"}
    assert all(set(figures) == {"size", "used", "perplexity", "shuffle_drop"} for figures in report["codes"].values())
    assert {"top", "bottom", "bits_per_pixel"} <= set(report["priors"])
    assert all({"bits_per_code", "context_model_bits", "histogram_bits", "position_histogram_bits", "condition",
                "below_best_reference"} <= set(report["priors"][level]) for level in ("top", "bottom"))
    assert (report["likelihood"], report["lesions"]) == (None, None)
    assert report["samples"]["count"] == 4


def test_metrics_json_is_what_evaluate_returns(judged, report):
    assert json.loads(json.dumps(judged[1].metrics)) == report


def test_bits_per_pixel_count_each_code_once_for_all_pixels(report):
    """32 x 32 pixels have 16 top codes and 64 bottom codes, of 16 embeddings (4 bits) each."""
    top, bottom = (report["priors"][level]["bits_per_code"] for level in ("top", "bottom"))
    assert report["priors"]["bits_per_pixel"] == pytest.approx((16 * top + 64 * bottom) / 1024)
    assert report["raw_bits_per_pixel"] == pytest.approx(80 * 4 / 1024)


def test_a_prior_is_so_far_below_the_best_of_the_models_that_count(report):
    for level in ("top", "bottom"):
        prior = report["priors"][level]
        best = min(prior[f"{name}_bits"] for name in ("context_model", "histogram", "position_histogram"))
        assert prior["below_best_reference"] == pytest.approx((best - prior["bits_per_code"]) / best)
        assert prior["ci_low"] <= prior["bits_per_code"] <= prior["ci_high"]


def test_the_headline_says_how_a_prior_compares_with_each_model_that_counts(report):
    changed = json.loads(json.dumps(report))
    changed["priors"]["top"] |= {"bits_per_code": 3.0, "below_best_reference": 0.25, "context_model_bits": 4.0,
                                 "position_histogram_bits": 5.0, "histogram_bits": 6.0}
    changed["priors"]["bottom"] |= {"below_best_reference": -0.1}
    rows = dict(report_text.headline(changed))
    assert rows["top prior"] == ("3.000 bits per code, 25.0 % below the best model that counts (neighbours 4.000, "
                                 "place 5.000, frequency 6.000)")
    assert "bits per code, 10.0 % above the best model that counts (" in rows["bottom prior"]
    assert "bits per pixel, upper bound on the code length of the decoded image; stored as they" in rows["all codes"]


def test_every_figure_is_drawn(judged):
    for name in ("strip", "likelihood", "reconstructions", "worst", "best", "code_images_top", "code_images_bottom",
                 "samples", "code_histogram", "ssim_histogram", "curves", "curves_top", "curves_bottom"):
        with Image.open(judged[0] / f"{name}.png") as picture:
            assert min(picture.size) > 100, name


def test_test_images_are_unseen_and_training_images_are_counted(tiny_run, report, tmp_path):
    assert report["seen_in_training"] == {"images": 0, "subjects": 0}
    on_train = reports.evaluate(settings_for(tiny_run, tmp_path, split="train", top=None, bottom=None)).metrics
    assert on_train["seen_in_training"] == {"images": 18, "subjects": 6}


def test_the_test_split_is_refused_where_one_of_its_images_was_trained_on(tiny_run, tmp_path):
    data = shutil.copytree(tiny_run.data, tmp_path / "data")
    trained, judged = (min((data / split).glob("*.png")) for split in ("train", "test"))
    shutil.copyfile(trained, judged)
    edit_manifest(data, hashed=True)
    with pytest.raises(UserError, match=r"--split test: .* found 1 of 9 that they were\. Give the --data"):
        reports.evaluate(settings_for(tiny_run, tmp_path / "out", data=data))
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_what_a_prior_alone_has_seen_counts_too(judged):
    images = judged[1].images
    vqvae = {"training_images": [], "training_subjects": []}
    prior = {"training_images": [pixel_hash(images.pixels[0])], "training_subjects": [subject_hash(images.subjects[0])]}
    assert leaks.seen_in_training([vqvae], images) == {"images": 0, "subjects": 0}
    assert leaks.seen_in_training([vqvae, prior], images) == {"images": 1, "subjects": 1}


def test_without_priors_there_are_neither_their_figures_nor_samples(tiny_run, tmp_path):
    metrics = reports.evaluate(settings_for(tiny_run, tmp_path, top=None, bottom=None)).metrics
    assert (metrics["priors"], metrics["samples"], report_text.tables(metrics)["priors"][1]) == (None, None, [])
    assert not (tmp_path / "samples.png").exists()
    assert not any("prior" in name or "samples" in name for name, _ in report_text.headline(metrics))


def test_the_headline_names_split_interval_and_each_level(report):
    rows = dict(report_text.headline(report))
    ssim = report["reconstruction"]["full"]["ssim"]
    assert rows["SSIM, full picture"] == (f"{ssim['mean']:.4f} (95 % interval {ssim['ci_low']:.4f} to "
                                          f"{ssim['ci_high']:.4f}), minimum {ssim['min']:.4f}, "
                                          f"maximum {ssim['max']:.4f}")
    assert rows["images"].startswith("9 of 3 subjects, split test; 0 of them and 0 subjects seen")
    assert {"top codes", "bottom codes", "top prior", "bottom prior", "all codes"} <= set(rows)


def test_a_figure_that_is_not_defined_is_a_dash_with_its_reason_in_the_headline(report):
    undefined = json.loads(json.dumps(report))
    undefined["codes"]["top"]["shuffle_drop"] = None
    undefined["reconstruction"]["brain"]["ssim"] = dict.fromkeys(SUMMARY)
    rows = dict(report_text.headline(undefined))
    assert rows["top codes"].endswith("shuffle drop – (needs images of 11 pixels a side or more)")
    assert rows["SSIM, inside the brain"] == "– (needs an image that is not black)"


def test_a_table_in_markdown_has_a_rule_under_its_columns():
    table = report_text.markdown_table(("a", "b"), [("1", "2")])
    assert table.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2 |"]


def test_samples_are_not_compared_with_the_train_split_itself(tiny_run, tmp_path):
    made = reports.evaluate(settings_for(tiny_run, tmp_path, split="train", probe=True)).metrics
    assert made["samples"] is None
    assert made["priors"]["top"]["context_model_bits"] is None
    assert any("the train split would be compared with itself" in warning for warning in made["warnings"])


def test_rates_are_measured_where_they_are_asked_for(tiny_run, tmp_path):
    made = reports.evaluate(settings_for(tiny_run, tmp_path, samples=0, rates=True)).metrics
    points = made["rates"]["model"]["points"]
    assert points["raw"]["bits_per_pixel"] == pytest.approx(made["raw_bits_per_pixel"])
    # The tiny priors are told nothing, and all nine images are measured: the same code lengths.
    assert points["prior"]["bits_per_pixel"] == pytest.approx(made["priors"]["bits_per_pixel"], rel=1e-6)
    context = sum(made["priors"][level]["context_model_bits"] * cells for level, cells in (("top", 16), ("bottom", 64)))
    assert points["context"]["bits_per_pixel"] == pytest.approx(context / 1024)
    assert (tmp_path / "rates.png").is_file()


@pytest.mark.parametrize(("name", "found"), [
    ("model.safetensors", "a model in it"), ("metrics.json", r"metrics\.json and no evaluate\.json"),
    ("strip.png", r"strip\.png and no evaluate\.json"), ("parts/thesis.tex", r"parts and no evaluate\.json")])
def test_a_folder_of_something_else_is_left_alone(tiny_run, tmp_path, name, found):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"schema": 1, "split": "test"}')
    before = files_in(tmp_path)
    with pytest.raises(UserError, match=rf"--out .*: expected .*, found {found}\. Choose another --out"):
        reports.evaluate(settings_for(tiny_run, tmp_path))
    assert files_in(tmp_path) == before


class TestGoingOn:
    """metrics.json is there when it is whole; what a stopped run has finished is not done again."""

    @pytest.fixture
    def copied(self, judged, tmp_path):
        """A copy of the folder of a whole report."""
        return Path(shutil.copytree(judged[0], tmp_path / "copied" / judged[0].name))

    @pytest.fixture
    def nothing_is_computed(self, monkeypatch):
        def refuse(*_):
            raise AssertionError("it was there already")
        monkeypatch.setattr(encoding, "reconstruct", refuse)
        for judge, _ in reports.JUDGES:
            monkeypatch.setattr(type(judge), "compute", refuse)

    def test_the_same_command_again_computes_nothing_and_changes_no_file(self, tiny_run, copied, report, capsys,
                                                                         nothing_is_computed):
        before = files_in(copied)
        (copied / "mine.png").write_text("not a figure")
        made = reports.evaluate(settings_for(tiny_run, copied, batch=5))
        assert json.loads(json.dumps(made.metrics)) == report
        assert files_in(copied).items() >= before.items()
        assert capsys.readouterr().out == ("5 of 5 sections are there already: reconstruction, codes, priors, samples, "
                                           "samples.memorisation\n")

    @pytest.mark.parametrize("at", ["codes", "samples", "samples.memorisation"])
    def test_a_stopped_run_goes_on_with_the_next_section_and_ends_as_if_it_had_not_stopped(
            self, at, judged, tiny_run, tmp_path, monkeypatch, capsys):
        def killed(*_):
            (out / ".half.tmp.json").write_text("written half")
            raise KeyboardInterrupt("killed here")

        out, names = tmp_path / judged[0].name, [judge.name for judge, _ in reports.JUDGES[:5]]
        with monkeypatch.context() as patched:
            patched.setattr(type(reports.JUDGES[names.index(at)][0]), "compute", killed)
            with pytest.raises(KeyboardInterrupt, match="killed here"):
                reports.evaluate(settings_for(tiny_run, out))
        assert not (out / "metrics.json").exists()
        capsys.readouterr()
        reports.evaluate(settings_for(tiny_run, out))
        there = names[:names.index(at)]
        assert f"{len(there)} of 5 sections are there already: {', '.join(there)}\n" in capsys.readouterr().out
        assert files_in(out) == files_in(judged[0])

    def test_a_section_may_be_added_and_the_others_are_not_computed_again(self, tiny_run, copied, report, monkeypatch,
                                                                          nothing_is_computed):
        def stopped(*_):
            raise KeyboardInterrupt("killed here")

        monkeypatch.setattr(reports.RatesJudge, "compute", stopped)
        with pytest.raises(KeyboardInterrupt, match="killed here"):
            reports.evaluate(settings_for(tiny_run, copied, rates=True))
        assert not (copied / "metrics.json").exists()
        monkeypatch.undo()
        monkeypatch.setattr(reports.CodesJudge, "compute", None)
        made = json.loads(json.dumps(reports.evaluate(settings_for(tiny_run, copied, rates=True)).metrics))
        assert made["rates"]["images"] == 9
        assert made | {"rates": None} == report
        assert not (copied / "parts").exists()
        with pytest.raises(UserError, match=r"its figures were made with, found --rates False \(was True\)\. Give"):
            reports.evaluate(settings_for(tiny_run, copied))

    @pytest.mark.parametrize(("changes", "found"), [
        ({"seed": 1, "samples": 5}, r"--samples 5 \(was 4\), --seed 1 \(was 0\)"),
        ({"top": None, "bottom": None}, r"--top None \(was .*tiny-top\), --bottom None \(was .*tiny-bottom\)"),
        ({"split": "validate"}, r"--split validate \(was test\)")])
    def test_other_settings_are_refused_with_both_values_and_nothing_changes(self, changes, found, tiny_run, copied):
        before = files_in(copied)
        with pytest.raises(UserError, match=rf"--out .*: expected the settings that its figures were made with, found "
                                            rf"{found}.*\. Give those again, or choose another --out\."):
            reports.evaluate(settings_for(tiny_run, copied, **changes))
        assert files_in(copied) == before

    def test_other_images_are_refused(self, tiny_run, copied, tmp_path):
        data = shutil.copytree(tiny_run.data, tmp_path / "data")
        reports.evaluate(settings_for(tiny_run, copied, data=data))  # another name for the same images
        rows = (data / "manifest.csv").read_text().splitlines()
        (data / "manifest.csv").write_text("\n".join(rows[:-1]) + "\n")
        with pytest.raises(UserError, match=r"found --data .*data \(was .*Give those again"):
            reports.evaluate(settings_for(tiny_run, copied, data=data))

    def test_what_another_version_has_finished_is_there_and_gets_no_section_of_this_one(self, tiny_run, copied,
                                                                                        monkeypatch):
        monkeypatch.setattr(reports, "__version__", "9.9")
        before = files_in(copied)
        assert reports.evaluate(settings_for(tiny_run, copied)).metrics["codes"] is not None
        refused = pytest.raises(UserError, match=r"--out .*: expected all figures to be made by one version, vqvae2 "
                                                 r"0\.\d\.\d, found vqvae2 9\.9\. Choose another --out\.")
        with refused:
            reports.evaluate(settings_for(tiny_run, copied, rates=True))
        assert files_in(copied) == before
        (copied / "metrics.json").unlink()
        with refused:
            reports.evaluate(settings_for(tiny_run, copied))

    def test_a_signal_ends_it_with_75_and_a_line(self, tiny_run, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(reports.CodesJudge, "compute", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit, match="75"):
            run_script(lambda: evaluate.main(["--vqvae", str(tiny_run.vqvae), "--data", str(tiny_run.data), "--out",
                                              str(tmp_path / "out")]))
        assert on_screen(capsys.readouterr().err)[-1].startswith(
            f"Stopped by a signal, all finished sections saved: {tmp_path / 'out'}. The same command goes on")
        assert [path.name for path in (tmp_path / "out" / "parts").iterdir()] == ["reconstruction.json"]


def test_a_feature_network_that_is_none_is_refused_before_anything_is_computed(tiny_run, tmp_path):
    with pytest.raises(UserError, match=r"--features nope"):
        reports.evaluate(settings_for(tiny_run, tmp_path / "out", features="nope"))
    assert not (tmp_path / "out").exists()


def test_the_figures_of_the_codes_do_not_depend_on_the_batch(tiny_run, tmp_path):
    by_two, by_nine = (reports.evaluate(settings_for(tiny_run, tmp_path, top=None, bottom=None, batch=batch))
                       for batch in (2, 9))
    assert by_two.metrics["codes"] == by_nine.metrics["codes"]


class SharpnessJudge(Judge):
    """Mean difference of neighbouring pixels, of the reconstruction over that of the image."""

    name = "sharpness"

    def compute(self, evaluation):
        edges = [images.double().diff(dim=3).abs().mean((1, 2, 3))
                 for images in (evaluation.images.bytes(), evaluation.reconstructions)]
        return statistics.summarise(edges[1] / edges[0], evaluation.images.subjects, evaluation.settings.seed)

    def rows(self, figures, report):
        return [("sharpness", statistics.with_interval(figures, "mean", 3))]


def test_a_metric_of_ones_own_needs_a_class_and_a_row_of_the_table(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "JUDGES", (*reports.JUDGES, (SharpnessJudge(), lambda evaluation: True)))
    metrics = reports.evaluate(settings_for(tiny_run, tmp_path, top=None, bottom=None)).metrics
    assert 0 < json.loads((tmp_path / "metrics.json").read_text())["sharpness"]["mean"] < 1
    name, value = report_text.headline(metrics)[-1]
    assert (name, value[:5]) == ("sharpness", f"{metrics['sharpness']['mean']:.3f}")
    assert report_text.tables(metrics)["sharpness"] == (("figure", "value"), [(name, value)])


def test_a_probe_of_all_folds_without_a_probe_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--probe-whole: expected --probe beside it, found --probe-whole alone"):
        EvaluateSettings(vqvae="a", out=tmp_path, probe_whole=True)
