"""A figure that is not defined -> why it could not be computed, in words that stand behind its dash.

Each function takes figures of metrics.json and gives the reason, whether or not the figure is there.
"""

SMALL = "needs images of 11 pixels a side or more"
TOLD_NOTHING = "the prior is told nothing anyway"
NO_TRAINING = "no training slices to compare with"
NOTHING_KNOWN = "needs images of several known values"


def of_similarity(report: dict, area: str) -> str:
    """Return why SSIM and the like are not defined, in the `area` full or brain."""
    return "needs an image that is not black" if area == "brain" and report["ms_ssim_weights"] else SMALL


def of_counting(report: dict) -> str:
    """Return why there is no counting model beside a prior."""
    return "the train split is judged" if report["split"] == "train" else "no training slices to count in"


def of_samples(found: dict, name: str, *, is_real: bool = False) -> str:
    """Return why a metric of samples is not defined.

    Args:
        found: the figures `samples` of metrics.json, or those of reconstructions among them.
        name: mmd, other_mmd, frechet, precision, recall, pairwise_ms_ssim, spectrum or edges.
        is_real: of what real slices reach.
    """
    beside, compared = found["compared_with"], found["compared"]
    unseen = f"slices of {beside['subjects']} unseen {'person' if beside['subjects'] == 1 else 'people'}"
    if name in ("spectrum", "edges"):
        return NO_TRAINING if is_real else "needs images that are not of a single grey"
    if name == "pairwise_ms_ssim":
        return f"needs slices of 2 people, found {unseen}" if is_real else (
            f"needs 2 samples of 11 pixels a side or more, found {found['count']}")
    whose = "training slices" if is_real else "samples"
    return {"frechet": f"needs more than {found['features']['dims']} {whose} and unseen slices, found {compared} and "
                       f"{beside['images']}",
            "mmd": f"needs slices of 2 unseen people or more, and 2 {whose}{' of 2 people' * is_real}; found {unseen} "
                   f"and {found['count']} samples"}.get(
        "mmd" if name == "other_mmd" else name,
        f"needs {whose} and unseen slices of several people, 4 or more of each; found {compared} {whose} and "
        f"{beside['images']} {unseen}")


def of_probe(figures: dict, name: str) -> str:
    """Return why the AUROC of a pair of `samples.probe` is not defined."""
    found = figures.get(name)
    return NO_TRAINING if found is None else "needs slices of 2 unseen people or more, and 2 images of each kind"


def of_tissue(whose: str, key: str) -> str:
    """Return why a figure of the shares of tissue is not defined: key is mean or distance, `whose` such as real."""
    return "needs slices of 2 unseen people or more" if (whose, key) == ("real", "distance") else (
        "needs images that are not black")


def of_rate(name: str) -> str:
    """Return why a codec has no figure at the model's rate."""
    return f"no {name} file is so small"
