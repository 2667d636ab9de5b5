"""A metric's name -> what it says, what is good, what is bad, what to do: for the page of a report and for the docs.

READINGS is the only source: the page shows each sentence beside its number, and docs/reading-your-results.md has all of
them (`as_markdown`; a test holds the document to the table). Figures in it are those of docs/results.md.
"""

from typing import NamedTuple


class Reading(NamedTuple):
    """This says how one metric is read. Each field but the title is a clause without a full stop."""

    title: str
    says: str
    good: str
    bad: str
    advice: str
    """What to do where it is bad."""

    def clauses(self) -> list[tuple[str, str]]:
        """Return what each clause is and the clause as a sentence; the first needs no name."""
        return [("", f"{self.says}."), ("Good:", f"{self.good}."), ("Bad:", f"{self.bad}."),
                ("What to do:", f"{self.advice}.")]


READINGS = {
    "ssim": Reading(
        "SSIM, full picture",
        "How like its original a reconstruction is, in brightness, contrast and structure; 1 is equal",
        "0.95 or more, the aim at 128 by 128 pixels; the weights of this project have 0.966 there, 0.941 at 64 by 64",
        "below 0.90: whole structures are missing",
        "train longer, or with a larger --codebook-size; 512 codes a level had 0.013 more than 128, but a prior can "
        "learn few codes"),
    "brain_ssim": Reading(
        "SSIM, inside the brain",
        "The same where the original is not black: a black background is easy to restore and flatters the full picture",
        "near the full picture's; the weights of this project have 0.912 at 128 by 128",
        "far below the full picture's: folds are lost",
        "compare models by this row"),
    "lowest_ssim": Reading(
        "SSIM, lowest image",
        "The worst single image",
        "0.90 or more, the aim at 128 by 128 pixels",
        "far below the mean: a scan that was cut wrongly, or a slice unlike those of training",
        "look at the worst images below, and at the page of the slices (index.html of the extraction)"),
    "ms_ssim": Reading(
        "MS-SSIM",
        "SSIM over several sizes of detail, from fine to coarse",
        "near 1; the weights of this project have 0.994 at 128 by 128",
        "as low as SSIM: shapes are wrong, not the finest detail alone",
        "as for SSIM"),
    "psnr": Reading(
        "PSNR (dB)",
        "The mean squared error on a logarithmic scale; more is nearer",
        "the weights of this project have 31.3 dB at 128 by 128, 36.6 dB at 256 by 256",
        "much less at the same size",
        "expect about 2 dB less with a texture decoder, whose detail is invented: read spectrum and edges there"),
    "mae": Reading(
        "mean absolute error",
        "How far a pixel is off on average, on images 0…1",
        "the weights of this project have 0.012 at 128 by 128",
        "much more than that, inside the brain too",
        "as for SSIM"),
    "used": Reading(
        "codes used",
        "How many codes of the level occur at least once in these images",
        "nearly all; but codes in use prove little: hundreds may be in use and none matter",
        "below 10 % of the codebook; below 2 %, or 8 codes, it has collapsed and no prior is trained on it",
        "train the VQ-VAE longer, or with more --start-steps"),
    "perplexity": Reading(
        "perplexity",
        "How many evenly used codes would be as varied; 1 is collapsed",
        "a good part of the codebook: the weights of this project have 57 (top) and 23 (bottom) of 128",
        "near 1: one code serves for everything",
        "train the VQ-VAE longer, or with more --start-steps"),
    "shuffle_drop": Reading(
        "shuffle drop (SSIM)",
        "The SSIM that is lost when images exchange this level's maps: how much the level really says",
        "0.15 or more for the top, the aim; the weights of this project have 0.25 (top) and 0.17 (bottom)",
        "near 0: the level says nothing, however many of its codes are in use",
        "train longer with the default --commitment; docs/results.md tells what keeps both levels in use"),
    "bits_per_code": Reading(
        "prior, bits per code",
        "The length that an ideal coder needs for a code (the NLL); fewer bits are better",
        "below every model that only counts: the weights of this project have 2.46 (top, best counting 3.31) and 2.35 "
        "(bottom, 3.45). Bits of another VQ-VAE's codes cannot be compared",
        "not below: the prior has learned nothing",
        "train longer; more slices a scan, small codebooks and small batches helped most here"),
    "counting": Reading(
        "models that only count",
        "What counting needs: how often a code follows its neighbours, stands at its place, occurs at all; a blind "
        "guess costs log2 of the codebook's size",
        "above the prior's bits",
        "below the prior's bits",
        "as for the prior; a prior that is told facts of the image is compared fairly in the row told nothing"),
    "bits_per_pixel": Reading(
        "all codes, bits per pixel",
        "All levels together under their priors, per pixel: an upper bound on the code length of the decoded image",
        "far below the bits of the codes as they are stored; the images have 8 bits per pixel",
        "near those bits: the priors know little",
        "as for the priors"),
    "mmd": Reading(
        "kernel MMD²",
        "The distance of samples from slices of unseen people, in features of a small network of this project",
        "near that of real slices, within its interval",
        "near that of reconstructions and far from real slices: the decoder's softness. Far above reconstructions: the "
        "priors",
        "against softness give --decoder (a texture decoder); otherwise train the priors further"),
    "other_mmd": Reading(
        "kernel MMD², photographs",
        "The same in features of a network that was trained on photographs, which knows nothing of brains",
        "near that of real slices",
        "far above it while the row before is near: the samples please only the network of this project",
        "believe the worse of the two rows"),
    "frechet": Reading(
        "Fréchet distance²",
        "The distance of mean and covariance of the same features; it depends on the number of images, so compare it "
        "only with the columns beside it",
        "near that of real slices",
        "far above it",
        "as for kernel MMD²; give --samples 256 or more for a steady number"),
    "precision": Reading(
        "precision",
        "The share of samples that look like some real slice",
        "near that of real slices",
        "near 0: samples are softer, or stranger, than real slices",
        "give --decoder: 0.32 in place of 0.09 at 128 by 128"),
    "recall": Reading(
        "recall",
        "The share of real slices that some sample looks like: variety",
        "near that of real slices, or above it",
        "near 0 while precision is high: the samples are all alike",
        "raise --temperature or --top-p towards 1"),
    "pairs": Reading(
        "MS-SSIM of pairs",
        "How alike two samples are; real slices beside it are of different people",
        "near that of real slices",
        "well above it: the samples are all alike",
        "raise --temperature or --top-p towards 1; train on more people"),
    "spectrum": Reading(
        "power / real slices",
        "How much detail of each size there is, from coarse to fine; 1 is as much as real slices have",
        "near 1 in every band; with a texture decoder 0.77 to 0.98 at 128 by 128",
        "far below 1 in the last bands: soft images. Above 1: noise",
        "give --decoder against softness"),
    "edges": Reading(
        "distance of edges",
        "How gradients spread, whatever the contrast: few steep borders between even areas, or slopes everywhere",
        "near that of real slices",
        "far above it although the power is right: grain in place of tissue",
        "read it together with the power; sharpening mends neither"),
    "closer": Reading(
        "near a training slice",
        "The share of samples that are nearer to a training slice than 99 % of slices of unseen people are",
        "about 1 %, or an interval that reaches down to 1 %",
        "an interval that begins above 1 %: some samples may be copies, unless reconstructions of unseen people, which "
        "are as soft, have as large a share",
        "look at the closest pairs below; train on more people, or for less long. A low share does not exclude copies "
        "of parts"),
    "probe": Reading(
        "AUROC of a classifier",
        "Of a pair of both kinds, how often a small classifier picks the made one: 0.5 is guessing, 1 is always",
        "near 0.5",
        "1 against real slices while it is low against reconstructions: the decoder's softness gives samples away, not "
        "the priors",
        "give --decoder; the row against reconstructions says what the priors get wrong. The number counts only where "
        "the classifier is good enough to tell obvious fakes, with 0.9 or more: images of the neighbours model, whose "
        "codes are drawn by counting which code follows which"),
    "rates": Reading(
        "SSIM at the same bits",
        "Quality beside files of JPEG, WebP and JPEG 2000 that cost as many bits as the codes as they are",
        "above the codecs'; without their headers the codecs do better, for a small picture's file is partly header",
        "below the codecs', as at 256 by 256 pixels here",
        "a smaller --codebook-size costs fewer bits; the codecs know nothing of brains, the model nothing else"),
    "lesions": Reading(
        "AUROC of synthetic lesions",
        "How well a score finds drawn lesions, pixel by pixel inside the brain: 0.5 is guessing, 1 finds all",
        "likelihood above both baselines, which have the best of their forms",
        "intensity above likelihood: a threshold does as well (as for enlarged ventricles here)",
        "use the plain score there. These are drawings: they say nothing about a disease"),
    "told": Reading(
        "error of what is read",
        "A network that has learned from training slices reads a number, such as the position, from images that were "
        "told it or really have it; the error is in the number's unit",
        "about that of reconstructions, which have passed the same decoder; the weights of this project have 5.0 mm at "
        "64 by 64 pixels, their reconstructions 3.2 mm, a blind guess 16.9 mm",
        "near a blind guess, with R² near 0: samples do not hold what they are told",
        "train the priors longer. Where R² is near 0 on real slices too, as for age from few people, the number cannot "
        "be read, and the rows say nothing about samples"),
    "tissue": Reading(
        "share of the brain",
        "How much of the brain in a slice is fluid, grey or white matter, by its grey values alone; samples were told "
        "the positions of the real slices",
        "near that of reconstructions: a decoder that is soft takes some fluid and white matter for grey",
        "far from that of reconstructions: the priors draw other brains than there are",
        "measure no tissue in samples before this is right. Pixels of several millimetres hold two tissues: this is no "
        "volumetry"),
    "tissue_distance": Reading(
        "distance of the shares",
        "How far the shares of single slices are from those of real slices (Wasserstein distance), variety included; 0 "
        "is equal",
        "at most that of two halves of the real people, which stands beside it with the range of 95 % of the halves",
        "beyond that range, and beyond that of reconstructions",
        "as for the share; equal means at a large distance are too little or too much variety"),
}


def as_markdown() -> str:
    """Return the table for docs/reading-your-results.md."""
    lines = ["| metric | what it says | good | bad | what to do |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(reading)} |" for reading in READINGS.values())])
