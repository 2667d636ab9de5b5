r"""A VQ-VAE and its priors -> new images, brains or completions of given images, with a grid, and their codes.

New images, from the shipped weights and from your own:
    python sample.py --preset pretrained-128 --out brains
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --count 64 --out samples
Likelier and less varied images, with a stronger limit for the bottom level (one value is for both levels, two values
are top, bottom):
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-cool \
        --count 16 --temperature 0.9 0.8 --top-k 0 100 --top-p 1 0.95
Images of women of 60 to 80 years, from priors that were trained with --condition age sex, with twice the learned
effect:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-women \
        --condition sex=F age=60..80 --guidance 2
The likeliest of 4 candidates for each image, or the one whose codes survive decoding and encoding best:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-likely --reject 4
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-stable \
        --reject 4 --reject-by agreement
The one that classifiers take for a real brain most readily. They are trained first, for some minutes, on 512 samples
and the codes of the training slices (codes/train.npz of the VQ-VAE, which the training of a prior leaves there):
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-real \
        --reject 4 --reject-by classifier
On 4 GPUs, or on 4 cores; the images are the same as from one process:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=4 \
        sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --count 5000 --out samples

The left half of each test picture (as it is seen: the subject's right) made anew, 4 times:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed \
        --inpaint data/oasis-2d/test --mask left
The white part of a mask picture of the same size made anew, 8 times, with a seam of 4 pixels:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed-hole \
        --inpaint data/oasis-2d/test --mask hole.png --count 8 --blend 4
The codes marked -1 in a code file sampled anew:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed-codes \
        --inpaint codes.npz

Whole brains as NIfTI files in millimetres, of slices that belong together, 1 mm apart, and a part of one, 2 mm apart,
from priors that were trained with --condition position_mm (as the shipped ones were):
    python sample.py --preset volume-64 --out brains --count 4
    python sample.py --vqvae vqvae-64 --top top-64 --bottom bottom-64 --out volumes --nifti --count 2 --spacing 2 \
        --condition position_mm=-20..30

--out receives images/NNNNNN.png (with --inpaint images/<name>-NNNNNN.png, with --nifti volumes/NNNNNN.nii.gz),
grid.png, codes.npz (as codes/<split>.npz of a VQ-VAE) and sample.json. Images are written as they are finished. The
same command goes on after Ctrl-C, a signal or a kill. A larger --count adds images; a smaller --count removes the
images beyond it. Another --batch or number of processes gives the same images.

A mask hides pixels: hidden pixels are 0 before the image is encoded, and every code whose cell has a hidden pixel is
sampled anew, so nothing of the hidden pixels can get into a completion. Visible pixels keep their original values;
--blend fades beside the mask. Codes are sampled in raster order, from the top left: codes of a hidden upper or left
part do not see the visible part below them or at their right. --reject 8 keeps completions that fit the visible part,
since it counts how likely the visible codes then are. 16-bit images become 8-bit images.

A brain of --nifti has voxels in the order right, anterior, superior, 0…255, and the middle of its box at 0, 0, 0 mm.
Priors that were trained with --condition previous-slice (on slices of --per-scan all; preset volume-64) sample slice by
slice from the middle outwards, each told the codes of the one before; other priors give all slices of a brain the same
random numbers, which makes neighbours alike but not one brain (docs/volumes.md has figures).

--reject keeps the likeliest codes by default, but the likeliest image is not the most typical: likely images have small
brains and much background, and many candidates reduce variety, as a low temperature does; so does `agreement`. Of 4 by
`classifier`, variety was not less. sample.json says which share was kept and compares the kept candidates with all.
"""

from pathlib import Path

from vqvae2.commands import endings
from vqvae2.common import machine
from vqvae2.runs import weights
from vqvae2.sampling import sampler, writing
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings.parsing import parse


def main(arguments: list[str] | None = None) -> None:
    """Sample as the command line says."""
    settings = parse(SampleSettings, __doc__, arguments)
    # On one thread also what is not drawn: with another number of threads the last bits might be others.
    with machine.going_on_later("images", settings.out), sampler.one_thread():
        writing.run(settings)
    models = [word for name in ("vqvae", "top", "bottom", "decoder") if (value := getattr(settings, name))
              for word in (f"--{name}", value)]
    slices = endings.config_of(weights.find_run(settings.vqvae, "--vqvae"))["settings"].get("data")
    following = ["evaluate", *models, "--out", "report"]
    if not (slices and Path(slices).is_dir()):  # as of shipped weights: scans are what a user may have
        following = ["predict", "--vqvae", settings.vqvae, "--out", f"{Path(settings.vqvae).name}-predicted", "SCAN"]
    following = [] if settings.inpaint or settings.nifti else following
    endings.say(settings.out / writing.GRID, *following, show=settings.open)
