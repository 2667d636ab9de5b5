"""What a model has seen is told by hashes: of pixels, whatever the file is called, and of subjects' names."""

import json
import shutil

import numpy as np
import pytest
from conftest import TINY, TINY_PRIOR, TINY_VQVAE, write_slices

from vqvae2.commands import publish, train_prior, train_vqvae
from vqvae2.common.errors import UserError
from vqvae2.evaluation import leaks
from vqvae2.evaluation import report as reports
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.evaluation.text import headline
from vqvae2.images.dataset import ImageSet, pixel_hash, subject_hash
from vqvae2.images.listing import ImageFile
from vqvae2.runs import weights


@pytest.fixture
def split():
    """Three images of two subjects."""
    pixels = np.arange(3 * 16, dtype=np.uint8).reshape(3, 1, 4, 4)
    return ImageSet(tuple(ImageFile(f"test/{i}.png", "test", f"sub-{i // 2}", "") for i in range(3)), pixels)


def config(pictures=(), subjects=()):
    return {"training_images": [pixel_hash(picture) for picture in pictures],
            "training_subjects": [subject_hash(subject) for subject in subjects]}


def test_what_any_of_the_models_has_seen_counts_once(split):
    configs = [config(split.pixels[:1], ["sub-0"]), config(split.pixels[:2], ["sub-0", "someone"])]
    assert leaks.seen_in_training(configs, split) == {"images": 2, "subjects": 1}


def test_only_images_that_were_trained_on_are_searched_for_copies(split):
    found = leaks.trained_on([config(split.pixels[2:]), config(split.pixels[:1])], split)
    assert found.names == ["test/0.png", "test/2.png"]
    np.testing.assert_array_equal(found.pixels, split.pixels[[0, 2]])
    assert len(leaks.trained_on([config()], split)) == 0


def test_a_test_image_that_was_trained_on_is_refused(split):
    with pytest.raises(UserError, match=r"--split test: expected images that --vqvae and --top were not trained on, "
                                        r"found 2 of 3 that they were\. Give the --data"):
        leaks.check({"images": 2, "subjects": 1}, split, "test", ["--vqvae", "--top"])


def test_an_image_of_another_split_that_was_trained_on_is_a_warning(split):
    [warning] = leaks.check({"images": 3, "subjects": 2}, split, "train", ["--vqvae"])
    assert warning.startswith("3 of 3 images were trained on: these figures say how well --vqvae remember")


def test_a_subjects_name_alone_is_a_warning_and_no_refusal(split):
    [warning] = leaks.check({"images": 0, "subjects": 1}, split, "test", ["--vqvae"])
    assert warning.startswith("1 of 2 subjects have names that --vqvae were trained on, though none of the images was")
    assert leaks.check({"images": 0, "subjects": 0}, split, "test", ["--vqvae"]) == []


def test_with_allow_leak_a_test_image_that_was_trained_on_is_a_loud_warning(split):
    [warning] = leaks.check({"images": 2, "subjects": 1}, split, "test", ["--vqvae", "--top"], allowed=True)
    assert warning.startswith("LEAK (--allow-leak): 2 of 3 test images were trained on by --vqvae and --top. These fig")
    assert leaks.check({"images": 0, "subjects": 0}, split, "test", ["--vqvae"], allowed=True) == []


@pytest.fixture(scope="module")
def leaky(tmp_path_factory):
    """A VQ-VAE and a prior that were trained on a data set whose second subject is in train and test, one image even
    twice: the folder of what was trained."""
    folder = tmp_path_factory.mktemp("leaky")
    data = write_slices(folder / "slices")
    lines = (data / "manifest.csv").read_text().splitlines()
    assert lines[4].startswith("train/OAS1_0002")
    shutil.copy(data / lines[4].split(",")[0], data / "test" / "copy.png")
    lines.append(",".join(["test/copy.png", "test", *lines[4].split(",")[2:]]))
    (data / "manifest.csv").write_text("\n".join(lines) + "\n")
    common = ["--data", str(data), "--results", str(folder / "results"), *TINY]
    vqvae = [*common, "--savename", "leaky", *TINY_VQVAE]
    with pytest.raises(UserError, match=r"found subject OAS1_0002 in train and test\. Split by subject"):
        train_vqvae.main(vqvae)
    train_vqvae.main([*vqvae, "--allow-leak"])
    train_prior.main([*common, "--savename", "leaky-top", "--level", "top", *TINY_PRIOR, "--epochs", "1",
                          "--vqvae", str(folder / "results" / "oasis" / "leaky")])
    return folder / "results" / "oasis"


def test_after_allow_leak_config_reports_and_cards_say_what_is_shared(leaky, tmp_path):
    for name in ("leaky", "leaky-top"):
        assert weights.read_config(leaky / name)["data"]["shared_subjects"] == 1
    settings = EvaluateSettings(vqvae=str(leaky / "leaky"), top=str(leaky / "leaky-top"), out=tmp_path / "report",
                                samples=0)
    report = reports.evaluate(settings).metrics
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert written["warnings"] == report["warnings"]
    assert (written["data"]["shared_subjects"], written["seen_in_training"]) == (1, {"images": 1, "subjects": 1})
    said = [warning for warning in report["warnings"] if warning.startswith("LEAK (--allow-leak): 1 ")]
    assert ["subject(s) are in more than one split" in said[0], "of 10 test images were trained on" in said[1]] == [
        True, True]
    assert [("warning", warning) for warning in said] == [row for row in headline(report) if row[1].startswith("LEAK")]
    for name in ("leaky", "leaky-top"):
        card = publish.card(leaky / name, "Made up.", {"": report}, "evaluate")
        assert card.count("**LEAK (--allow-leak): 1 subject(s) are in more than one split") == 2  # of data, of figures
        assert "**LEAK (--allow-leak): 1 of 10 test images were trained on by --vqvae" in card


def test_without_a_leak_no_card_speaks_of_one(tiny_run):
    assert "LEAK" not in publish.card(tiny_run.vqvae, "Made up.", {}, "evaluate")
