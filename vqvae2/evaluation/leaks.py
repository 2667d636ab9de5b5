"""Hashes of training images, and the images that are judged -> how many judged images the models have seen.

A run keeps hashes of its training images (of the pixels, so that renaming or converting a file does not hide it) and of
its training subjects' names. A test on images that a model was trained on is worthless, so `--split test` is refused
for such images. A subject's name alone proves less, since two studies may both have a sub-01: that is a warning. If the
splits of a public data set share images or subjects, train_vqvae.py --allow-leak allows such a report; it then contains
a warning.
"""

from collections.abc import Iterable, Mapping

from vqvae2.common.errors import expect
from vqvae2.images.dataset import ImageSet, pixel_hash, subject_hash

LEAK = "LEAK (--allow-leak)"
"""A warning that --allow-leak has let through begins with these words."""


def seen_in_training(configs: Iterable[dict], split: ImageSet) -> dict[str, int]:
    """Return how many images and subjects of a split the models of these configs were trained on, by their hashes."""
    images, subjects = (set().union(*(config[key] for config in configs))
                        for key in ("training_images", "training_subjects"))
    return {"images": sum(pixel_hash(picture) in images for picture in split.pixels),
            "subjects": sum(subject_hash(subject) in subjects for subject in set(split.subjects))}


def trained_on(configs: Iterable[dict], split: ImageSet) -> ImageSet:
    """Return those images of a split that the models of these configs were trained on, by their pixels' hashes."""
    known = set().union(*(config["training_images"] for config in configs))
    items = [item for item, picture in enumerate(split.pixels) if pixel_hash(picture) in known]
    return ImageSet(tuple(split.files[item] for item in items), split.pixels[items])


def shared(subjects: int) -> list[str]:
    """Return a warning if subjects are in more than one split, else no warning."""
    return [] if not subjects else [
        f"{LEAK}: {subjects} subject(s) are in more than one split of this data set. Figures of one split "
        "are partly about people of another, and are no evidence of how good a model is on others."]


def check(seen: Mapping[str, int], split: ImageSet, name: str, models: Iterable[str], *,
          allowed: bool = False) -> list[str]:
    """Return warnings about the images and subjects of the split `name` that were `seen_in_training`.

    Args:
        models: flags of the models, for the message.
        allowed: --allow-leak of the VQ-VAE's training.
    Raises: UserError if the split is "test" and a model was trained on one of its images, unless that is allowed.
    """
    who, images = " and ".join(models), f"{seen['images']} of {len(split)}"
    expect(allowed or name != "test" or not seen["images"], "--split test",
           f"images that {who} were not trained on", f"{images} that they were",
           "Give the --data they were trained with.")
    if seen["images"]:
        return [f"{LEAK}: {images} test images were trained on by {who}. These figures are too good, and are no "
                "evidence of how good a model is on other images." if name == "test" else
                f"{images} images were trained on: these figures say how well {who} remember, not how good they are."]
    if seen["subjects"]:
        return [f"{seen['subjects']} of {len(set(split.subjects))} subjects have names that {who} were trained on, "
                "though none of the images was. If they are the same people, these figures are too good."]
    return []
