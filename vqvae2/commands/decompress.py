r"""Files of vqvae2 compress, and the models that made them -> pictures and scans.

    vqvae2 decompress small --vqvae vqvae-128 --top top-128 --bottom bottom-128 --out again
Those of --lossless, and both kinds at once:
    vqvae2 decompress exact --lossless lossless --out again-exact
    vqvae2 decompress small exact --lossless lossless --vqvae vqvae-128 --top top-128 --bottom bottom-128 \
        --out again-both
Three planes of a scan alone, as pictures:
    vqvae2 decompress small/sub-01_T1w.vqmri --slices 40 60 80 --vqvae vqvae-128 --top top-128 --bottom bottom-128 \
        --out planes

Of an image <out>/<name>.png is made, of a scan <out>/<name>.nii.gz, with --slices <out>/<name>_<plane>_<index>.png. A
slice whose bytes were damaged, or which this machine decodes otherwise than it was written, is named in
<out>/damaged.csv and left out (in a scan it is background); all others are written, and the exit status is 2.
<out>/decompress.json says of which file each was made.

No file is replaced that this command did not make. It goes on after Ctrl-C, a signal or a kill; other inputs, settings
or models need another --out.
"""

from vqvae2.common import machine
from vqvae2.common.errors import UserError
from vqvae2.compression import decompressing
from vqvae2.compression.settings import DecompressSettings
from vqvae2.evaluation.prediction import MOST_SAID
from vqvae2.settings.parsing import parse


def main(arguments: list[str] | None = None) -> None:
    """Decompress as the command line says."""
    settings = parse(DecompressSettings, __doc__, arguments)
    with machine.going_on_later("files", settings.out):
        report = decompressing.decompress(settings)
    lost_slices = sum(row["slice"] != "" for row in report["lost"])
    print(f"{report['files']} file(s), {report['slices'] - lost_slices} of {report['slices']} slice(s); written: "
          f"{settings.out}", flush=True)
    if lost := report["lost"]:
        for row in lost[:MOST_SAID]:
            print(f"lost: {row['file']}{f', slice {number}' if (number := row['slice']) != '' else ''}: "
                  f"{row['reason']}", flush=True)
        raise UserError(f"{settings.out}: expected all files and slices whole, found {len(lost)} that cannot be "
                        f"decoded; all others are there. See {settings.out / decompressing.TABLE}, and take other "
                        "copies.")
