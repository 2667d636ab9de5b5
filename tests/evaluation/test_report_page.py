"""index.html of a report says what metrics.json says, in plain words, in a real Chromium; names in it do nothing."""

import copy
import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium, find_chromium
from conftest import files_in
from PIL import Image

from vqvae2.commands import evaluate, predict
from vqvae2.commands import report as report_command
from vqvae2.common import page as shell
from vqvae2.common.errors import UserError
from vqvae2.evaluation import page, prediction_page, reading, reasons, text, verdict
from vqvae2.evaluation import report as reports
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.evaluation.widgets import INDEX, MOST_BYTES, Cell, Line, embedded, prose, table
from vqvae2.settings.parsing import as_command

ROOT = Path(__file__).parents[2]
in_chromium = pytest.mark.skipif(find_chromium() is None, reason="no chromium, chromium-browser or google-chrome")
HOSTILE = ["<img src=x onerror=hacked=1>", "</script><script>hacked=1</script>", "\"' onclick=hacked=1", "<!--body-->",
           "&lt;b&gt;", "\udcff undecodable", "{{7*7}}", "javascript:hacked=1"]
SHARES = {"samples_median": 0.1, "samples_min": 0.09, "unseen_median": 0.1, "threshold": 0.08, "closer_share": 0.0,
          "ci_low": 0.0, "ci_high": 0.02, "closest": []}


def evaluated(run, out, *more):
    """Run evaluate as the command line does; return the folder."""
    evaluate.main(["--vqvae", str(run.vqvae), "--top", str(run.top), "--bottom", str(run.bottom), "--data",
                   str(run.data), "--samples", "4", "--out", str(out), *more])
    return out


@pytest.fixture(scope="module")
def made(tiny_run, tmp_path_factory):
    """A folder of evaluate.py."""
    return evaluated(tiny_run, tmp_path_factory.mktemp("page") / "report")


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the folder, which a test may change."""
    return Path(shutil.copytree(made, tmp_path / "report"))


@pytest.fixture(scope="module")
def browser():
    with Chromium() as chromium:
        yield chromium


@pytest.fixture
def figures():
    """A metrics.json as the weights at 128 by 128 pixels have it, in what the verdict reads."""
    area = {name: {"mean": value, "min": value - 0.02, "ci_low": value - 0.001, "ci_high": value + 0.001}
            for name, value in (("ssim", 0.966), ("ms_ssim", 0.99), ("psnr", 31.0), ("mae", 0.01))}
    prior = {"bits_per_code": 2.5, "below_best_reference": 0.25, "condition": []}
    probe = {"auroc": 0.79, "ci_low": 0.7, "ci_high": 0.87, "fakes": 256, "subjects": 12}
    return {"warnings": [], "split": "test", "subjects": 12, "subjects_known": True, "images": 720,
            "ms_ssim_weights": [1.0], "reconstruction": {"full": area, "brain": area},
            "codes": {"top": {"size": 128, "used": 128, "perplexity": 57.0, "shuffle_drop": 0.248},
                      "bottom": {"size": 128, "used": 128, "perplexity": 23.0, "shuffle_drop": 0.171}},
            "priors": {"top": prior, "bottom": {**prior, "below_best_reference": 0.31}},
            "samples": {"count": 256, "mmd": {"value": 1.1, "ci_low": 0.8, "ci_high": 1.5, "real_floor": 0.03,
                                              "real_floor_ci_low": -0.1, "real_floor_ci_high": 0.16},
                        "pairwise_ms_ssim": 0.58, "real_pairwise_ms_ssim": 0.581,
                        "memorisation": {"samples": 256, "pixels": SHARES, "features": SHARES,
                                         "reconstructions": {"pixels": SHARES, "features": SHARES}},
                        "probe": {"samples": probe, "samples_against_reconstructions": {**probe, "auroc": 0.662},
                                  "counts": True}},
            "rates": None, "lesions": None}


def said(report, about):
    """The mark and text of the sentences of the verdict about something."""
    return [(mark, text_) for mark, what, text_ in verdict.verdict(report) if what == about]


class TestVerdict:
    def test_both_levels_are_in_use(self, figures):
        assert said(figures, "Codes") == [("good", "Both levels are in use: images lose 0.25 of SSIM without the top "
                                                   "codes' information, 0.17 without the bottom's.")]

    @pytest.mark.parametrize(("drop", "mark", "expected"), [
        (0.0099, "bad", "The top level says nothing: images lose 0.010 of SSIM when they exchange its codes, so that "
                        "the bottom's say everything."),
        (0.0101, "fair", "Both levels are in use: images lose 0.01 of SSIM without the top codes' information, 0.17 "
                         "without the bottom's. The top level says little."),
        (0.0701, "good", "Both levels are in use: images lose 0.07 of SSIM without the top codes' information, 0.17 "
                         "without the bottom's.")])
    def test_a_level_says_nothing_or_little_by_its_shuffle_drop(self, drop, mark, expected, figures):
        figures["codes"]["top"]["shuffle_drop"] = drop
        assert said(figures, "Codes")[0] == (mark, expected)

    def test_what_the_codes_of_a_single_image_say_is_not_known(self, figures):
        assert said(figures | {"images": 1}, "Codes") == [
            ("unknown", "What the codes say is not known: one image has no other to exchange codes with.")]

    @pytest.mark.parametrize(("used", "how"), [(2, "has collapsed"), (12, "is hardly used")])
    def test_a_codebook_of_few_codes_is_bad(self, used, how, figures):
        figures["codes"]["bottom"]["used"] = used
        assert said(figures, "Codes")[0][1].startswith(f"The bottom codebook {how}: {used} of 128 codes are in use.")

    def test_reconstructions_without_rates_say_which_flag_would_compare_them(self, figures):
        assert said(figures, "Reconstructions") == [("good", "Mean SSIM 0.966 (0.965 to 0.967), 0.946 for the worst "
                                                             "image.")]
        assert said(figures, "Rates") == [("unknown", "How this compares with JPEG at the same bits was not asked: "
                                                      "--rates would tell.")]

    @pytest.mark.parametrize(("jpeg", "words"), [
        (0.955, "better than JPEG at the same bits (0.955, 0.970 if its header cost nothing)"),
        (0.966, "about as good as JPEG at the same bits (0.966, 0.970 if its header cost nothing)"),
        (0.969, "worse than JPEG at the same bits (0.969, 0.970 if its header cost nothing)"),
        (None, "no JPEG file is so small (without its header JPEG has 0.970)")])
    def test_jpeg_at_the_same_bits_is_compared_only_where_rates_are_there(self, jpeg, words, figures):
        figures["rates"] = {"model": {"ssim_ci_low": 0.964, "ssim_ci_high": 0.968}, "at_equal_rate": {"raw": {"jpeg": {
            "bits_per_pixel": {"ssim": jpeg}, "without_header": {"ssim": 0.97}}}}}
        [(_, sentence)] = said(figures, "Reconstructions")
        assert sentence.endswith(f"; {words}.")
        assert said(figures, "Rates") == []

    @pytest.mark.parametrize(("ssim", "mark"), [(0.95, "good"), (0.949, "fair"), (0.899, "bad")])
    def test_ssim_is_good_fair_or_bad_by_the_table(self, ssim, mark, figures):
        figures["reconstruction"]["full"]["ssim"]["mean"] = ssim
        assert said(figures, "Reconstructions")[0][0] == mark

    def test_auroc_is_a_share_of_pairs_not_of_cases(self, figures):
        assert said(figures, "Samples") == [(
            "bad", "Of a pair of a sample and a real slice, a classifier picks the sample in 8 of 10 pairs (AUROC 0.79 "
                   "(0.70 to 0.87); 0.5 would be perfect), and in 7 of 10 beside reconstructions, which have passed "
                   "the same decoder.")]

    @pytest.mark.parametrize(("auroc", "low", "mark"), [
        (0.6, 0.48, "good"), (0.7, 0.55, "fair"), (0.74, 0.49, "unknown"), (0.76, 0.6, "bad")])
    def test_the_classifier_is_good_fair_bad_or_says_nothing(self, auroc, low, mark, figures):
        figures["samples"]["probe"]["samples"] |= {"auroc": auroc, "ci_low": low}
        assert said(figures, "Samples")[0][0] == mark

    def test_a_classifier_that_is_too_weak_says_nothing(self, figures):
        figures["samples"]["probe"]["counts"] = False
        [(mark, sentence)] = said(figures, "Samples")
        assert (mark, "too weak to count" in sentence) == ("unknown", True)

    def test_without_the_classifier_the_verdict_names_its_flag_and_takes_the_features(self, figures):
        figures["samples"]["probe"] = None
        assert said(figures, "Samples") == [(
            "bad", "Samples are further from slices of unseen people than slices of other people are (kernel MMD² "
                   "1.10 (0.80 to 1.50); real slices 0.03).")]
        assert said(figures, "Classifier") == [("unknown", "Whether a classifier can tell samples from real slices is "
                                                           "not known: --probe would tell.")]

    @pytest.mark.parametrize(("low", "mark"), [(0.5, "bad"), (-0.1, "good")])
    def test_the_network_that_says_the_worse_is_believed(self, low, mark, figures):
        near = {"value": 0.02, "ci_low": -0.2, "ci_high": 0.3, "real_floor": 0.03, "real_floor_ci_high": 0.3}
        figures["samples"] |= {"probe": None, "mmd": near, "other_mmd": near | {"value": 0.02, "ci_low": low}}
        assert said(figures, "Samples")[0][0] == mark
        assert ("photographs" in said(figures, "Samples")[0][1]) == (mark == "bad")

    def test_few_samples_are_neither_praised_nor_called_copies(self, figures):
        near = {"value": 0.02, "ci_low": -0.2, "ci_high": 0.3, "real_floor": 0.03, "real_floor_ci_high": 0.3}
        figures["samples"] |= {"probe": None, "mmd": near, "other_mmd": None, "count": 16, "pairwise_ms_ssim": 0.9}
        copies = figures["samples"]["memorisation"]
        copies |= {"samples": 16, "pixels": SHARES | {"closer_share": 0.2, "ci_low": 0.05, "ci_high": 0.5}}
        assert [said(figures, about)[-1][0] for about in ("Samples", "Variety", "Copies")] == ["unknown"] * 3
        assert "16 samples are too few to tell" in said(figures, "Copies")[0][1]

    def test_a_texture_decoder_is_named_beside_the_ssim_that_it_costs(self, figures):
        assert "texture decoder" not in said(figures, "Reconstructions")[0][1]
        own = {"ssim": figures["reconstruction"]["full"]["ssim"] | {"mean": 0.951}}
        figures["reconstruction"] = figures["reconstruction"] | {"own_decoder": own}
        figures["reconstruction"]["full"]["ssim"]["mean"] = 0.92
        mark, sentence = said(figures, "Reconstructions")[0]
        assert mark == "good"
        assert sentence.startswith("Mean SSIM 0.951 (")
        assert "With the texture decoder, whose detail is invented: mean SSIM 0.920" in sentence

    def test_intervals_that_meet_tell_nothing_about_samples(self, figures):
        figures["samples"]["probe"] = None
        figures["samples"]["mmd"]["ci_low"] = 0.1
        assert said(figures, "Samples")[0][0] == "unknown"

    def test_no_samples_are_said_to_be_missing_with_their_flags(self, figures):
        assert said(figures | {"samples": None}, "Samples") == [
            ("unknown", "No samples were judged: --top and --bottom name the priors to sample from, --sampled a folder "
                        "of samples.")]
        assert said(figures | {"samples": None, "split": "train"}, "Samples")[0][1] == (
            "No samples were judged: the train split would be compared with itself.")

    def test_samples_that_are_all_alike_are_bad(self, figures):
        figures["samples"]["pairwise_ms_ssim"] = 0.64
        assert said(figures, "Variety") == [("bad", "Two samples are more alike than slices of two people (MS-SSIM of "
                                                    "pairs 0.640, real 0.581). Draw with --temperature and --top-p "
                                                    "nearer to 1.")]

    def test_copies_are_judged_by_the_lower_end_of_their_interval_and_by_softness(self, figures):
        [(mark, sentence)] = said(figures, "Copies")
        assert (mark, sentence.split(",")[0]) == ("good", "No more samples lie near a training slice than slices of "
                                                          "unseen people do")
        copies = figures["samples"]["memorisation"]
        copies["pixels"] = SHARES | {"closer_share": 0.08, "ci_low": 0.02, "ci_high": 0.2}
        assert said(figures, "Copies")[0] == ("bad", "More samples lie near a training slice than slices of unseen "
                                              "people do: 8.0 % by pixels, where 1 % is expected. Look at the closest "
                                              "pairs: some samples may be copies.")
        copies["reconstructions"]["pixels"] = SHARES | {"closer_share": 0.09}
        assert said(figures, "Copies")[0][0] == "fair"
        copies["pixels"] |= {"ci_low": None, "ci_high": None}
        assert said(figures, "Copies")[0][0] == "unknown"

    def test_a_prior_that_counting_beats_has_learned_nothing(self, figures):
        figures["priors"]["top"] = {**figures["priors"]["top"], "below_best_reference": -0.1}
        assert said(figures, "Priors") == [
            ("bad", "The top prior has learned nothing that counting does not give: it needs 10 % more bits than the "
                    "best model that counts."),
            ("good", "The bottom prior needs 31 % fewer bits than the best model that only counts.")]

    def test_lesions_are_compared_with_the_best_baseline(self, figures):
        figures["lesions"] = {"all": {"likelihood": {"auroc": 0.917}, "intensity": {"auroc": 0.697},
                                      "reconstruction_error": {"auroc": 0.553}}}
        [(mark, sentence)] = said(figures, "Lesions")
        assert (mark, "better than an intensity threshold does (AUROC per pixel 0.92 and 0.70)" in sentence) == (
            "good", True)

    def test_restoration_is_compared_by_auprc_with_the_baselines_that_do_not_know_the_kind(self, figures):
        figures["lesions"] = {"all": {"share": 0.02, **{name: {"auroc": 0.5, "auprc": value} for name, value in {
            "likelihood": 0.1, "intensity": 0.03, "reconstruction_error": 0.14, "atlas": 0.21, "atlas_signed": 0.5,
            "restoration": 0.3, "restoration_times_likelihood": 0.34}.items()}}}
        assert said(figures, "Lesions")[1] == (
            "good", "Restoration times likelihood finds them better than the best of the baselines, atlas (AUPRC 0.34 "
                    "and 0.21; guessing has 0.02).")

    def test_warnings_come_first_those_of_the_report_and_those_of_few_people_and_samples(self, figures):
        figures |= {"warnings": ["LEAK (--allow-leak): 3 images"], "subjects": 4}
        figures["samples"]["count"] = 16
        found = verdict.verdict(figures)
        assert [(mark, about) for mark, about, _ in found[:3]] == [("warning", "Warning"), ("warning", "People"),
                                                                   ("warning", "Samples")]
        assert found[0].text == "LEAK (--allow-leak): 3 images."
        assert "of 4 people alone" in found[1].text
        assert said(figures | {"subjects_known": False}, "People")[0][1].startswith("Whose the images are is not known")


class TestReading:
    def test_the_document_is_filled_from_the_tables(self):
        document = (ROOT / "docs/reading-your-results.md").read_text(encoding="utf-8")
        filled = text.fill(document, "reading", reading.as_markdown())
        assert text.fill(filled, "thresholds", verdict.thresholds_as_markdown()) == document
        assert document.count("<!-- end -->") == 2

    def test_every_line_is_shown_on_some_page_and_has_all_clauses(self):
        source = (ROOT / "vqvae2/evaluation/page.py").read_text(encoding="utf-8")
        for name, line in reading.READINGS.items():
            assert all(line), name
            assert f'"{name}"' in source, name

    @pytest.mark.parametrize(("name", "is_real", "why"), [
        ("frechet", False, "needs more than 32 samples and unseen slices, found 16 and 24"),
        ("frechet", True, "needs more than 32 training slices and unseen slices, found 16 and 24"),
        ("mmd", False, "needs slices of 2 unseen people or more, and 2 samples; found slices of 12 unseen people and "
                       "16 samples"),
        ("recall", False, "needs samples and unseen slices of several people, 4 or more of each; found 16 samples and "
                          "24 slices of 12 unseen people"),
        ("edges", True, "no training slices to compare with")])
    def test_a_metric_of_samples_that_is_not_defined_says_what_it_needs_and_what_was_there(self, name, is_real, why):
        found = {"count": 16, "compared": 16, "compared_with": {"images": 24, "subjects": 12}, "features": {"dims": 32}}
        assert reasons.of_samples(found, name, is_real=is_real) == why

    def test_dashes_say_why_in_print_and_on_the_page(self, made, capsys):
        metrics = json.loads((made / "metrics.json").read_text())
        rows = dict(text.headline(metrics))
        why = "needs more than 32 samples and unseen slices, found 4 and 9"
        assert rows["samples, Fréchet distance²"].startswith(f"– ({why}); ")
        for name, value in rows.items():
            assert not re.search(r"–(?! \()", value), name
        content = (made / INDEX).read_text()
        assert f'<td>–<small class="why">{why}</small></td>' in content
        assert "<td>–</td>" not in content


class TestFolder:
    def test_the_record_has_date_and_command_and_metrics_json_has_neither(self, made, capsys):
        record, metrics = (json.loads((made / name).read_text()) for name in ("evaluate.json", "metrics.json"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
        assert record["command"].startswith("vqvae2 evaluate --vqvae ")
        assert record["command"].endswith("--samples 4")
        assert not {"date", "command"} & set(metrics)

    def test_the_last_line_says_where_the_page_is(self, tiny_run, made, capsys):
        evaluated(tiny_run, made)
        assert capsys.readouterr().out.splitlines()[-2] == f"look at: {made / INDEX}"

    def test_the_same_command_makes_a_page_that_is_gone_and_the_same_one(self, tiny_run, folder):
        before = files_in(folder)
        (folder / INDEX).rename(folder / ".0123456789abcdef.tmp.html")  # as a kill leaves it
        evaluated(tiny_run, folder)
        assert files_in(folder) == before

    def test_pairs_are_originals_above_reconstructions_with_names_and_ssim(self, made, tiny_run):
        [report] = page.read([made])
        assert len(report.images) == 8
        with Image.open(made / "pairs.png") as sheet:
            pixels = np.asarray(sheet)
        assert pixels.shape == (64, 8 * 32)
        original = np.asarray(Image.open(tiny_run.data / report.images[3]["name"]))
        assert np.array_equal(pixels[:32, 96:128], original)
        shown = json.loads((made / "metrics.json").read_text())["reconstruction"]["full"]["ssim"]
        assert all(shown["min"] <= image["ssim"] <= shown["max"] for image in report.images)

    def test_without_pairs_and_record_the_page_has_no_slider_and_shows_the_strip(self, folder):
        for name in ("pairs.png", "evaluate.json"):
            (folder / name).unlink()
        report_command.main([str(folder), "--out", str(folder / "new.html")])
        content = (folder / "new.html").read_text()
        assert 'class="viewer' not in content
        assert "Evenly chosen images" in content
        assert "<h1>report</h1>" in content

    @pytest.mark.parametrize("damaged", [b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(50)])
    def test_damaged_pictures_are_left_out(self, damaged, folder):
        for name in ("pairs.png", "worst.png"):
            (folder / name).write_bytes(damaged)
        content = page.page_bytes(page.read([folder])).decode()
        assert 'class="viewer' not in content
        assert page.CAPTIONS["worst"] not in content
        assert page.CAPTIONS["best"] in content

    def test_one_folder_twice_is_refused(self, refusal, folder, tmp_path):
        assert "expected each folder once" in refusal(report_command.main, folder, folder, "--out", tmp_path / "x.html")

    def test_a_folder_that_is_no_report_and_a_file_of_something_else_are_refused(self, refusal, folder, tmp_path):
        said_ = refusal(report_command.main, tmp_path / "nothing", "--out", tmp_path / "x.html")
        assert "metrics.json: expected the figures that evaluate.py wrote, found no such file. Give a folder" in said_
        (tmp_path / "thesis.html").write_text("<p>mine")
        assert "--out" in refusal(report_command.main, folder, "--out", tmp_path / "thesis.html")
        assert (tmp_path / "thesis.html").read_text() == "<p>mine"
        (folder / "metrics.json").write_text('{"schema": 1, "warnings": [], "split": 5}')
        assert "found KeyError: no " in refusal(report_command.main, folder, "--out", tmp_path / "x.html")

    def test_figures_of_a_judge_of_ones_own_stand_under_further_metrics(self, folder):
        metrics = json.loads((folder / "metrics.json").read_text()) | {"sharpness": {"mean": 0.93, "note": "<b>"}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        content = page.page_bytes(page.read([folder])).decode()
        assert '<th scope="row">sharpness, mean</th><td>0.93</td>' in content

    def test_paths_of_this_machine_are_not_on_the_page(self, folder, tiny_run):
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["warnings"] = [f"--vqvae {tiny_run.vqvae} is tiny."]
        (folder / "metrics.json").write_text(json.dumps(metrics))
        content = page.page_bytes(page.read([folder])).decode()
        assert str(tiny_run.results) not in content
        assert '<span class="flag">--vqvae</span> tiny is tiny.' in content

    def test_a_command_leaves_out_defaults_and_shortens_paths(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(ROOT)
        settings = EvaluateSettings(vqvae=str(tmp_path / "my runs/a"), out=ROOT / "out", top="b", probe=True,
                                    temperature=(0.9, 0.7))
        assert as_command("evaluate", settings) == (
            "vqvae2 evaluate --vqvae ~/'my runs/a' --top b --out out --temperature 0.9 0.7 --probe")


class TestComparison:
    @pytest.fixture
    def two(self, folder, tmp_path):
        return [folder, Path(shutil.copytree(folder, tmp_path / "other"))]

    def change(self, folder, name, **changes):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))

    def content(self, folders):
        return page.page_bytes(page.read(folders)).decode()

    def test_equal_data_share_one_slider_with_a_frame_for_each_run_and_the_originals_once(self, two):
        content = self.content(two)
        assert content.count('<div class="viewer') == 1
        assert content.count('<div class="frame">') == 2
        assert content.count('alt="original of ') == 8
        assert content.count('alt="tiny (other) of ') == content.count('alt="tiny (report) of ') == 8
        assert "not comparable" not in content

    @pytest.mark.parametrize(("changes", "words"), [
        ({"split": "validate"}, "they differ in their split."),
        ({"images": 7}, "they differ in their number of images."),
        ({"split": "validate", "subjects": 2}, "they differ in their split, number of people.")])
    def test_other_splits_and_images_are_pointed_out(self, changes, words, two):
        self.change(two[1], "metrics.json", **changes)
        assert f"These reports are not comparable: {words}" in self.content(two)

    def test_other_data_of_the_same_name_are_pointed_out_and_have_sliders_of_their_own(self, two):
        record = json.loads((two[1] / "evaluate.json").read_text())
        self.change(two[1], "evaluate.json", settings=record["settings"] | {"images_hash": "f" * 64})
        content = self.content(two)
        assert "they differ in their images." in content
        assert content.count('<div class="viewer') == 2

    def test_the_same_images_are_comparable_whatever_else_a_report_has_read(self, tiny_run, folder, tmp_path):
        """Without priors no training slices are read: that changes the hash of the data, not that of the images."""
        evaluate.main(["--vqvae", str(tiny_run.vqvae), "--data", str(tiny_run.data), "--out", str(tmp_path / "few")])
        content = self.content([folder, tmp_path / "few"])
        assert "not comparable" not in content
        assert content.count('<div class="viewer') == 1

    def test_a_metric_that_one_report_lacks_says_so(self, two):
        self.change(two[1], "metrics.json", samples=None)
        content = self.content(two)
        assert "not in this report" in content
        assert "These reports differ in their number of samples" in content


class TestParts:
    def test_pictures_become_smaller_until_they_fit_and_grey_ones_stay_as_long_as_they_can(self):
        noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
        pictures = {"grey": Image.fromarray(noise[..., 0]), "colours": Image.fromarray(noise)}
        assert {found.uri[:15] for found in embedded(pictures, 10**7).values()} == {"data:image/png;"}
        mixed = embedded(pictures, 2_000_000)
        assert (mixed["grey"].uri[:15], mixed["colours"].uri[:16]) == ("data:image/png;", "data:image/jpeg;")
        small = embedded(pictures, 100_000)
        assert sum(len(found.uri) for found in small.values()) < 140_000
        assert small["grey"][1:] == (900, 900)
        assert MOST_BYTES * 4 / 3 < 6e6

    def test_a_flag_is_not_broken_and_names_are_escaped(self):
        assert prose("give --per-scan <3") == 'give <span class="flag">--per-scan</span> &lt;3'
        assert 'title="' not in table(["a"], [Line('" title="x', (Cell("1"),))], "t")

    def test_places_are_filled_once_whatever_stands_in_them(self):
        assert b"<p>&lt;!--facts--&gt;" in shell.filled("<p><!--a--></p><!--policy-->",
                                                       a=shell.escaped("<!--facts-->"))


# In a browser

def opened(browser, path, width=1280, mode="light"):
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.send("Emulation.setEmulatedMedia", media="", features=[{"name": "prefers-color-scheme", "value": mode}])
    browser.open(path)
    assert browser.events("Runtime.exceptionThrown", "Log.entryAdded") == []
    requests = [event["params"]["request"]["url"] for event in browser.events("Network.requestWillBeSent")]
    assert [url[:30] for url in requests if not url.startswith(("data:", "about:", path.resolve().as_uri()))] == []
    return browser


def press(browser, key, code, **more):
    for kind in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)


@in_chromium
def test_the_keyboard_moves_the_slider_and_chooses_the_picture(browser, made):
    opened(browser, made / INDEX)
    assert browser.evaluate("document.querySelector('.stage').checkVisibility()")
    at = "getComputedStyle(document.querySelector('.frame')).getPropertyValue('--at')"
    browser.evaluate("document.querySelector('input[type=range]').focus()")
    assert browser.evaluate(at) == "50%"
    press(browser, "ArrowRight", 39)
    assert browser.evaluate(at) == "51%"
    press(browser, "Home", 36)
    assert browser.evaluate(at) == "0%"
    assert browser.evaluate("document.activeElement.getAttribute('aria-valuetext')") == (
        "original 0 %, reconstruction 100 %")
    browser.evaluate("document.querySelectorAll('.pairs button')[2].focus()")
    press(browser, "Enter", 13, text="\r")
    assert browser.evaluate("[...document.querySelectorAll('.pairs button')].map(each => each.ariaPressed)") == [
        "true" if number == 2 else "false" for number in range(8)]
    assert browser.evaluate("""document.querySelector('.frame .over').src
        === document.querySelectorAll('.pairs button')[2].querySelector('img').src""")
    assert browser.evaluate("document.querySelector('label.slide').textContent").startswith("between original and")


@in_chromium
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_not_scrolled_sideways_and_a_wide_table_scrolls_in_its_box(width, browser, made, tmp_path):
    folders = [made, *(shutil.copytree(made, tmp_path / name) for name in ("second", "third"))]
    report_command.main([*map(str, folders), "--out", str(tmp_path / "three.html")])
    for path in (made / INDEX, tmp_path / "three.html"):
        opened(browser, path, width)
        assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
        assert browser.evaluate("""[...document.querySelectorAll('.wide')].every(box => box.tabIndex === 0
            && box.getAttribute('aria-label') && getComputedStyle(box).overflowX === 'auto')""")
    if width == 360:
        assert browser.evaluate("""[...document.querySelectorAll('.wide')].some(
            box => box.scrollWidth > box.clientWidth)""")


@in_chromium
def test_light_dark_and_print_have_their_own_colours_and_print_cuts_nothing(browser, made):
    ground = "getComputedStyle(document.body).backgroundColor"
    opened(browser, made / INDEX, mode="dark")
    assert browser.evaluate(ground) == "rgb(20, 23, 28)"
    opened(browser, made / INDEX)
    assert browser.evaluate(ground) == "rgb(244, 245, 247)"
    browser.send("Emulation.setDeviceMetricsOverride", width=688, height=1000, deviceScaleFactor=1, mobile=False)
    browser.send("Emulation.setEmulatedMedia", media="print",
                 features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.evaluate(ground) == "rgb(255, 255, 255)"
    assert browser.evaluate("""[...document.querySelectorAll('.wide')].filter(
        box => box.scrollWidth > box.clientWidth + 1).map(box => box.ariaLabel)""") == []
    assert browser.evaluate("""[...document.querySelectorAll('.frame, figure .wide, .mark')].every(
        box => getComputedStyle(box).printColorAdjust === 'exact')""")
    assert browser.evaluate("document.querySelector('label.slide').checkVisibility()") is False


@in_chromium
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(name, browser, folder):
    metrics, record = (json.loads((folder / file).read_text()) for file in ("metrics.json", "evaluate.json"))
    metrics["warnings"], metrics["data"]["folder"], metrics[name] = [name], name, {name: 1.0}
    metrics["versions"] = {name: name}
    record |= {"command": name, "date": name}
    record["settings"] |= {"vqvae": name, "top": name}
    for file, values in (("metrics.json", metrics), ("evaluate.json", record)):
        (folder / file).write_text(json.dumps(values))
    report = page.read([folder])[0]
    images = tuple({"name": name, "ssim": 0.5} for _ in report.images)
    (folder / INDEX).write_bytes(page.page_bytes([page.Report(folder, name, report.metrics, report.record, images)]))
    opened(browser, folder / INDEX)
    browser.evaluate("document.querySelectorAll('.pairs button')[1].click()")
    assert browser.evaluate("'hacked' in window") is False
    assert browser.evaluate("document.querySelectorAll('script').length") == 1
    shown = name.encode(errors="backslashreplace").decode()
    assert browser.evaluate("document.querySelector('h1').textContent") == shown
    assert browser.evaluate("document.querySelector('.told').textContent").startswith(f"{shown}. ")


@in_chromium
def test_two_reports_move_together(browser, made, tmp_path):
    other = shutil.copytree(made, tmp_path / "other")
    report_command.main([str(made), str(other), "--out", str(tmp_path / "two.html")])
    opened(browser, tmp_path / "two.html")
    browser.evaluate("document.querySelector('input[type=range]').focus()")
    press(browser, "End", 35)
    assert browser.evaluate("[...document.querySelectorAll('.frame')].map(each => each.style.getPropertyValue('--at'))"
                            ) == ["100%", "100%"]
    assert browser.evaluate("[...document.querySelectorAll('.frame .right')].map(each => each.textContent)") == [
        "tiny (report)", "tiny (other)"]
    assert browser.evaluate("document.querySelectorAll('ul.verdict').length") == 2
    heads = browser.evaluate("[...document.querySelectorAll('#samples thead th')].map(each => each.textContent)")
    assert heads == ["", "tiny (report)", "tiny (other)", "real slices"]


class TestPredictions:
    @pytest.fixture
    def predicted(self, tiny_run, apart):
        (apart / "given").mkdir()
        for path in sorted((tiny_run.data / "test").glob("*.png"))[:3]:
            shutil.copy(path, apart / "given")
        Image.fromarray(np.full((40, 60), 90, np.uint8)).save(apart / "given" / "wide.png")
        (apart / "given" / "<b>bad.png").write_bytes(b"no picture")
        self.again = ["--vqvae", str(tiny_run.vqvae), "given", "--out", "out"]
        predict.main(self.again)
        return apart / "out"

    def test_the_page_is_made_again_where_it_is_gone_and_is_the_folders_own(self, predicted, capsys):
        before = files_in(predicted)
        (predicted / INDEX).rename(predicted / ".0123456789abcdef.tmp.html")  # as a kill leaves it
        predict.main(self.again)
        assert files_in(predicted) == before
        assert capsys.readouterr().out.splitlines()[-1] == f"look at: {Path('out') / INDEX}"
        (predicted / "predict.json").unlink()
        with pytest.raises(UserError, match=rf"{re.escape(INDEX)} and no predict\.json"):
            predict.main(self.again)

    @in_chromium
    def test_each_image_has_its_figures_what_was_changed_and_what_was_not_read(self, predicted, browser):
        opened(browser, predicted / INDEX, 360)
        assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        assert browser.evaluate("document.querySelectorAll('.pairs button').length") == 4
        rows = list(csv.DictReader((predicted / "metrics.csv").read_text().splitlines()))
        cells = browser.evaluate("""[...document.querySelectorAll('tbody tr')].map(
            row => [...row.children].map(each => each.textContent))""")
        assert [row[:2] for row in cells[:4]] == [[row["image"], f"{float(row['ssim']):.3f}"] for row in rows]
        assert "resized from 60 by 40, black borders" in cells[3]
        assert (cells[4][0], cells[4][1][:32]) == ("given/<b>bad.png", "expected a readable image, found")

    def test_more_images_than_fit_are_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prediction_page, "MOST_SHOWN", 2)
        monkeypatch.setattr(prediction_page, "MOST_ROWS", 3)
        originals = {f"i{number}": np.full((1, 32, 32), 60000, np.uint16) for number in range(5)}
        for name in originals:
            (tmp_path / "made").mkdir(exist_ok=True)
            Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / f"made/{name}.png")
        rows = [{"image": name, "input": name, "ssim": "0.5"} for name in originals]
        prediction_page.write(tmp_path / "i.html", originals, {"reconstruction": tmp_path / "made"}, rows, [
            {"input": "x", "reason": "y"}] * 4, ["warning: <b>"], [])
        content = (tmp_path / "i.html").read_text()
        assert content.count('<button type="button"') == 2
        for words in ("and 3 more images, in pictures/", "and 2 more images, in metrics.csv",
                      "and 1 more file, in rejected.csv", '<p class="notice">warning: &lt;b&gt;</p>'):
            assert words in content


def test_a_page_of_figures_that_nobody_writes_is_a_user_error(made):
    [report] = page.read([made])
    broken = copy.deepcopy(report.metrics)
    broken["codes"]["top"] = None
    with pytest.raises(UserError, match=r"metrics\.json: expected the figures that evaluate\.py writes, found Type"):
        page.page_bytes([page.Report(report.folder, "a", broken, report.record, report.images)])


def test_a_run_to_which_sections_are_added_has_no_page_until_it_is_whole(tiny_run, folder, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt("killed here")

    monkeypatch.setattr(reports.RatesJudge, "compute", stopped)
    with pytest.raises(KeyboardInterrupt, match="killed here"):
        evaluated(tiny_run, folder, "--rates")
    assert not (folder / INDEX).exists()
    monkeypatch.undo()
    evaluated(tiny_run, folder, "--rates")
    assert "Quality over the bits" in (folder / INDEX).read_text()
