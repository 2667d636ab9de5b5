"""What a model has seen is told by hashes: of pixels, whatever the file is called, and of subjects' names."""

import numpy as np
import pytest

from vqvae2 import leaks
from vqvae2.errors import UserError
from vqvae2.images import ImageFile, ImageSet, pixel_hash, subject_hash


@pytest.fixture
def split():
    """Three images of two subjects."""
    pixels = np.arange(3 * 16, dtype=np.uint8).reshape(3, 1, 4, 4)
    return ImageSet(tuple(ImageFile(f"test/{i}.png", "test", f"sub-{i // 2}", "") for i in range(3)), pixels)


def config(pictures=(), subjects=()):
    return {"training_images": [pixel_hash(one) for one in pictures],
            "training_subjects": [subject_hash(one) for one in subjects]}


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
