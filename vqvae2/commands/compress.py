r"""Images and scans, a VQ-VAE and its priors -> a small file for each, from which decompress makes them again.

    vqvae2 compress brain.png --vqvae vqvae-128 --top top-128 --bottom bottom-128 --out small
    vqvae2 compress slices/test --vqvae vqvae-128 --top top-128 --bottom bottom-128 --out small
    vqvae2 compress sub-01_T1w.nii.gz ~/data/study --vqvae vqvae-128 --top top-128 --bottom bottom-128 \
        --out small
Without loss, pixel by pixel, in files that are eight times as large; the VQ-VAE has no part in it:
    vqvae2 compress slices/test --lossless lossless --out exact
And back:
    vqvae2 decompress small --vqvae vqvae-128 --top top-128 --bottom bottom-128 --out again
    vqvae2 decompress exact --lossless lossless --out again-exact

What comes back is what the codes of a VQ-VAE alone give back: it looks like the image, and is not the image. The priors
say how probable each code is after those before it, and a range coder makes of that about as many bits as an ideal
coder would. The files can be decoded on another machine, with another number of threads, batch size or CPU; a slice
that cannot be is found by its checksum, and named (docs/compression.md).

An image of another size is resized to the size that the models were trained on, as predict.py does it; it does not
come back at its own size. A scan is cut into all planes of its brain of one kind. It comes back as NIfTI on its own
grid, with background around the brain. Its header, of which some fields may hold a name, is in the file.

With --lossless grey images of 8 or 16 bits and of any size come back exactly, from a small network of pixels and whole
numbers. That takes pictures alone, not scans, and none with colours, transparency, fractions or several pages.

    <out>/<name>.vqmri       each image and each scan
    <out>/sizes.csv          bytes and bits a pixel of each file; SSIM, PSNR, MAE of what will come back
    <out>/rejected.csv       files in folders that cannot be read, with the reason
    <out>/compress.json      settings and versions; says that this folder is this command's

The same command goes on after Ctrl-C, a signal or a kill. Other inputs, settings or models need another --out.
"""

from vqvae2.commands import endings
from vqvae2.common import machine
from vqvae2.compression import compressing
from vqvae2.compression.settings import CompressSettings
from vqvae2.settings.parsing import parse


def main(arguments: list[str] | None = None) -> None:
    """Compress as the command line says."""
    settings = parse(CompressSettings, __doc__, arguments)
    with machine.going_on_later("files", settings.out):
        report = compressing.compress(settings)
    print("\n".join(compressing.headline(report)))
    print(f"written: {settings.out / compressing.TABLE} and all else", flush=True)
    own = [word for name in ("vqvae", "top", "bottom", "lossless") if (value := getattr(settings, name))
           for word in (f"--{name}", value)]
    endings.say(None, "decompress", settings.out, *own, "--out", settings.out.with_name(f"{settings.out.name}-again"))
