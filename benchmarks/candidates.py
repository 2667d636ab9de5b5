"""Ways to choose among candidates (`sample.py --reject-by`), on the same candidates -> a table for docs/results.md.

    python extract_slices.py --preset brain-128 --scans scans --out slices-128
    python benchmarks/candidates.py --data slices-128 --models brain-128 brain-128-top brain-128-bottom \
        --decoder brain-128-decoder

Candidate 0 of each image is the sample that evaluate.py draws; each image has the condition of a training slice. The
VQ-VAE's folder must hold codes/train.npz, from which the critic learns. All figures are of the test subjects: AUROC of
the probe against reconstructions (both soft) and against real slices (with texture), and of textured samples kernel
MMD², precision, recall and MS-SSIM of pairs.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from common import processor
from tqdm import tqdm

from vqvae2.common import random_numbers
from vqvae2.common.statistics import as_text, with_interval
from vqvae2.evaluation import distances, features, probe
from vqvae2.evaluation import text as report_text
from vqvae2.images.dataset import load_images
from vqvae2.images.settings import DataSettings
from vqvae2.models import encoding, texture_decoder
from vqvae2.priors import conditions
from vqvae2.sampling import sampler
from vqvae2.sampling.settings import SampleSettings

AT_A_TIME, SEED = 32, 0


def candidates(drawing: sampler.ImageSampler, told: list[dict], each: int) -> tuple[dict, torch.Tensor]:
    """Return the codes `[images * each, height, width]` of each level, and their bits per code."""
    tries = [(image, candidate) for image in range(len(told)) for candidate in range(each)]
    parts, bits = [], []
    for some in tqdm(np.array_split(np.array(tries), math.ceil(len(tries) / AT_A_TIME)), "candidates"):
        numbers, which = some.T.tolist()
        facts = {level: conditions.numbers(prior.columns, [told[number] for number in numbers])
                 for level, prior in drawing.priors.items()}
        parts.append(sampler.draw_maps(drawing.priors, numbers, SEED, drawing.rules, facts, candidates=which))
        bits.append(sampler.bits_per_code(drawing.priors, parts[-1], facts))
    return {level: torch.cat([part[level] for part in parts]) for level in parts[0]}, torch.cat(bits)


def main() -> None:
    """Draw, choose in each way, judge, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs=3, required=True, metavar=("VQVAE", "TOP", "BOTTOM"))
    parser.add_argument("--decoder", required=True)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--each", type=int, default=4, help="candidates of each image")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device, data = torch.device("cpu"), load_images(DataSettings(data=given.data))
    test, training = data.splits["test"], data.splits["train"]
    vqvae, priors = sampler.load_models(*given.models, device)
    settings = SampleSettings(vqvae=given.models[0], top=given.models[1], out=Path(), reject=given.each,
                              reject_by="classifier", batch=AT_A_TIME)
    drawing = sampler.ImageSampler(vqvae, priors, settings)
    facts = training.facts or [{}]
    chosen = random_numbers.uniform(SEED, "whose facts a sample is told", np.arange(given.images)) * len(facts)
    codes, bits = candidates(drawing, [facts[item] for item in chosen.long().tolist()], given.each)
    soft = encoding.decoded(vqvae.model, codes, 1)
    alone = [{level: maps[i:i + 1] for level, maps in codes.items()} for i in range(len(soft))]
    agreement = torch.stack([sampler.agreement(vqvae.model, *pair) for pair in zip(soft.split(1), alone)])
    drawing.learn()
    real_looks = drawing.critic.scores(soft)
    first = torch.arange(given.images) * given.each

    def best(scores: torch.Tensor, of: int = given.each) -> torch.Tensor:
        return first + scores.view(given.images, given.each)[:, :of].argmin(1)

    ways = {"the first": first, f"likelihood, of {given.each}": best(bits),
            f"agreement, of {given.each}": best(-agreement), "classifier, of 2": best(real_looks, 2),
            f"classifier, of {given.each}": best(real_looks)}
    made = dataclasses.replace(test, pixels=encoding.reconstruct(vqvae.model, test, AT_A_TIME)[1].numpy())
    extractor, rows = features.load_extractor(None, device, data.shape[1:]), []
    texture_decoder.attach(vqvae, given.decoder, SEED)
    for way, kept in tqdm(ways.items(), "judging"):
        sharp = encoding.decoded(vqvae.model, {level: maps[kept] for level, maps in codes.items()}, 1)
        found = distances.judge(sharp, test, training, extractor, SEED)
        rows.append((way, as_text(probe.judge(soft[kept], made, SEED)["auroc"], 3),
                     with_interval(probe.judge(sharp, test, SEED), "auroc", 3), as_text(found["mmd"]["value"], 2),
                     *(as_text(found[name]["value"], 3) for name in ("precision", "recall")),
                     as_text(found["pairwise_ms_ssim"], 3)))
    rows.append(("real slices", "", "", as_text(found["mmd"]["real_floor"], 2),
                 *(as_text(found[name]["real_floor"], 3) for name in ("precision", "recall")),
                 as_text(found["real_pairwise_ms_ssim"], 3)))
    columns = ("kept by", "AUROC, soft", "AUROC, with texture", "MMD²", "precision", "recall", "MS-SSIM of pairs")
    print(report_text.markdown_table(columns, rows))
    print(f"\n{given.images} images, {given.each} candidates each; {processor()}")


if __name__ == "__main__":
    main()
