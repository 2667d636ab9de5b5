"""Raw brain scans -> 2-D slices as PNGs, their manifest, and a split by subject.

    python extract_slices.py --scans ~/data/oasis --list
    python extract_slices.py --scans ~/data/oasis --out ~/data/oasis-slices
    python extract_slices.py --scans ~/data/oasis --out slices --planes axial coronal sagittal --per-scan 20
    python extract_slices.py --scans ~/data/oasis --out slices-128 --size 128 --bits 16 --workers 8 --strict
    python extract_slices.py --scans ~/data/oasis --out slices-128 --preset brain-128
    python extract_slices.py --scans /shared/oasis --out /shared/slices --shard 3/8      # on 8 machines, 1/8 to 8/8

The command reads OASIS-1 to -4 as downloaded, BIDS trees, FreeSurfer subjects, folders of NIfTI, Analyze or MGH files,
and folders of DICOM files as ADNI, PPMI and XNAT give them (extra dicom: pip install 'vqvae2-brain-mri[dicom]'; each is
converted once, into ~/.cache/vqvae2 or $VQVAE2_CACHE). Without --scans and --out, OASIS_PATH and SLICES_PATH are taken
from the environment or from .env. Nothing in --scans is changed.

    <out>/train, validate, test    <subject>[_<session>][_run-N]_<plane>NNN.png, NNN the plane's index
    <out>/manifest.csv             one row an image; there only while every image is as it says
    <out>/index.html               a page to look at every scan, opened from the disk: pictures, orientation, warnings
    <out>/rejected.csv             scans that cannot be used, each with its reason
    <out>/extraction.json          settings, versions and counts

With --layout keras_png_slices there are also links to the same images:

    <out>/keras_png_slices_train, _validate, _test    case_001_slice_0.nii.png, a case for each subject
    <out>/cases.csv                                   case,subject,split,image,link

Run the command again to go on where it stopped, or after a change of scans or settings: only missing or stale slices
are made anew. Slices of scans that are no longer there stay until you give --prune. docs/slices.md says more.
"""

from vqvae2.commands import endings
from vqvae2.common import output
from vqvae2.scans import archives
from vqvae2.settings import parsing
from vqvae2.slices import keras_names
from vqvae2.slices.extraction import check_out, extract, find_and_check, listed, merge
from vqvae2.slices.scan_slices import MANIFEST
from vqvae2.slices.settings import ExtractSettings


def main(arguments: list[str] | None = None) -> None:
    """Extract the slices that the command line asks for, and print what became of the scans."""
    settings = parsing.parse(ExtractSettings, __doc__, arguments)
    if settings.archives:
        output.is_result()
        print(archives.table())
        return
    folder = parsing.path_from_environment(settings.scans, "OASIS_PATH", "--scans")
    if settings.list:
        output.is_result()
        print("\n".join(listed(find_and_check(folder, settings))))
        return
    out = parsing.path_from_environment(settings.out, "SLICES_PATH", "--out")
    check_out(folder, out)
    found = find_and_check(folder, settings)
    if settings.layout == "keras_png_slices":
        keras_names.refuse_foreign(out)
    print("\n".join((merge if settings.merge else extract)(found, folder, settings, out)))
    if settings.layout == "oasis" and (out / MANIFEST).exists():  # other parts may still be at work
        recipe = ["--preset", settings.preset] if settings.preset else [
            "--dataset", "oasis", "--epochs", 30, "--batch", 16, "--savename", "brain"]
        endings.say(None, "train-vqvae", *recipe, "--data", out)
