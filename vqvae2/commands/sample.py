r"""A VQ-VAE and its priors -> new images, or completions of images that are given, a grid of them, and their codes.

New images:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --count 64 --out samples
Likelier and less varied, the bottom level more so (one value serves both levels, two are top, bottom):
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-cool \
        --count 16 --temperature 0.9 0.8 --top-k 0 100 --top-p 1 0.95
Of women of 60 to 80 years, where the priors were trained with --condition age sex; twice as strictly as learned:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-women \
        --condition sex=F age=60..80 --guidance 2
The likeliest of 4 candidates for each image, or the one whose codes survive decoding and encoding best:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-likely --reject 4
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out samples-stable \
        --reject 4 --reject-by agreement
On 4 GPUs, or on 4 cores; the images are those of one process:
    python -m torch.distributed.run --standalone --nnodes=1 --nproc_per_node=4 \
        sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --count 5000 --out samples

The left half of each test picture (as it is seen: the subject's right) drawn anew, 4 times:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed \
        --inpaint data/oasis-2d/test --mask left
What is white in a picture of the same size drawn anew, 8 times, with a seam of 4 pixels:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed-hole \
        --inpaint data/oasis-2d/test --mask hole.png --count 8 --blend 4
The codes marked -1 in a code file:
    python sample.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out completed-codes \
        --inpaint codes.npz

--out receives images/NNNNNN.png (with --inpaint images/<name>-NNNNNN.png), grid.png, codes.npz (as
codes/<split>.npz of a VQ-VAE) and sample.json. Images are written as they are finished. The same command goes on after
Ctrl-C, a signal or a kill; one with a larger --count adds images, one with a smaller removes those beyond it.
Another --batch or number of processes gives the same images.

A mask hides pixels: they are 0 before the image is encoded, and every code above one of them is drawn anew, so that
nothing of them can get into a completion. Visible pixels stay the original's; --blend fades beside the mask. Codes
are drawn in raster order, from the top left: those of an upper or left part do not see what stays below them or at
their right, and --reject 8, which counts how likely that then is, keeps completions that fit it. 16-bit images become
8-bit ones.

--reject keeps the likeliest codes, which is not the same as the most typical image: likely images have small brains and
much background, and many candidates cost variety, as a low temperature does. sample.json says what share was kept and
how it compares with all.
"""



from vqvae2.common import machine
from vqvae2.sampling import sampler, writing
from vqvae2.sampling.settings import SampleSettings
from vqvae2.settings.parsing import parse


def main(arguments: list[str] | None = None) -> None:
    """Sample as the command line says."""
    settings = parse(SampleSettings, __doc__, arguments)
    signals = machine.Signals()
    stopped = f"Stopped by a signal, all finished images saved: {settings.out}. The same command goes on from here."
    # On one thread also what is not drawn: with another number of threads the last bits might be others.
    with signals, signals.stopping_at_once(stopped), sampler.one_thread():
        writing.run(settings)
