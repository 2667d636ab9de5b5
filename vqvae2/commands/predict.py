"""A VQ-VAE and any images or scans -> their reconstructions, code maps, figures, and pictures side by side.

    python predict.py --vqvae vqvae-128 brain.png --out predicted
    python predict.py -m results/oasis/brain-128 photo.jpg slices/test more.tif --out predicted
Scans (NIfTI, Analyze, MGH, DICOM) and folders of scans are cut into slices as by extract_slices.py, by default 1 each:
    python predict.py --vqvae vqvae-128 sub-01_T1w.nii.gz --out predicted
    python predict.py --vqvae vqvae-128 ~/data/oasis --out predicted --per-scan 5 --extent 0.4 0.7
Whole scans, every plane of the brain, as NIfTI files on the scans' own grids (docs/volumes.md):
    python predict.py sub-01_T1w.nii.gz --nifti --vqvae vqvae-128 --out reconstructed
    python predict.py ~/data/study --nifti --vqvae axial-128 coronal-128 sagittal-128 --out reconstructed
    python predict.py ~/data/study --nifti --vqvae vqvae-128 --top top-128 --bottom bottom-128 --out reconstructed
With maps of what does not belong there, which takes minutes for each scan:
    python predict.py t1.nii.gz --nifti --restore --vqvae vqvae-64 --top top-64 --bottom bottom-64 --out reconstructed
At another size than in training; the model's downsampling factors must divide the size:
    python predict.py --vqvae vqvae-128 brain-256.png --out predicted --size 256

Without noise, by a denoiser of `vqvae2 train-denoiser` (docs/denoising.md):
    python predict.py --vqvae vqvae-128 slices/test --denoise denoiser-128 --out denoised

--vqvae is a folder that train_vqvae.py made, or a name in results/*/ or pretrained/; the model may have one or two
levels. No manifest, split or training data is needed. The command runs on CUDA or MPS if there is one, else on the CPU.

    <out>/reconstructions/<name>.png         what the codes alone give back
    <out>/denoised/<name>.png                the image without noise; with --denoise
    <out>/originals/<name>.png               what the model was given, where it is not the file itself: slices of
                                             scans, resized images, colours made grey
    <out>/codes.npz                          image (names), top, bottom (int16), vqvae_hash: as sample.py writes them
    <out>/code_images/<name>_<level>.png     the same as colours
    <out>/pictures/<name>.png, grid.png      original, reconstruction, |difference|, codes; the grid has the first 8
    <out>/metrics.csv, metrics.json          SSIM, MS-SSIM, PSNR, MAE of each image, of the whole picture and inside the
                                             brain (where the original is not black); means, and what was compared
    <out>/index.html                         all this on one page that needs no other file
    <out>/rejected.csv                       files in folders that cannot be read, with the reason
    <out>/predict.json                       settings and versions; says that this folder is predict.py's

With --nifti the folder is a BIDS derivative, and has, instead of images:

    <out>/sub-01/[ses-1/]anat/sub-01_desc-reconstruction_T1w.nii.gz    what the codes alone give back: shape, matrices,
                                             type, units and background of the scan; the mean where planes cross
    ..._desc-axialtopcodes_dseg.nii.gz       the codes of each level in each plane, int16, -1 where there is no brain
    ..._desc-bitsperpixel_T1w.nii.gz         what the priors find unlikely, float32, in bits per pixel; with --top
    ..._desc-restoration_T1w.nii.gz          what does not belong, float32, 0…1; with --restore
    each with a .json                        models and settings; that of the reconstruction has the scan's figures
    <out>/pictures/                          three planes of each scan: original, reconstruction, |difference|
    <out>/metrics.csv, metrics.json          figures of each scan's slices, and of its voxels inside the brain
    <out>/dataset_description.json, README.md, .bidsignore, index.html, rejected.csv, predict.json

An image of another size is resized to the size that the model was trained on. The image keeps its proportions and gets
black borders if they differ (it is stretched or cropped if the model was trained with --size). 16-bit images are read
over their whole range; of a file with several pages only the first page is read. A folder is searched to any depth; in
a folder that holds scans, only the scans are read. If a file is named and cannot be read, that is an error before
anything is written.

The same command goes on after Ctrl-C, a signal or a kill. Other inputs, settings or another model need another --out.

The metrics are no benchmark, since the subjects of the images are unknown; evaluate.py judges a model on unseen
subjects. The command warns of images that the model was trained on, and of scans whose subject has the name of a
training subject, and counts both. It warns of images that are unlike those of training, such as a head whose skull was
not removed: column unlikeness of metrics.csv, about 1 for a usual image; of images that look turned by 90 degrees, or
are dark where those of training are bright, as T2 beside T1: columns turned and inverted, below 0 for a usual image.
Upside down goes unnoticed.
"""

from vqvae2.commands import endings
from vqvae2.common import machine
from vqvae2.evaluation import prediction, whole_scans
from vqvae2.evaluation.prediction import PredictSettings
from vqvae2.evaluation.widgets import INDEX
from vqvae2.settings.parsing import parse


def main(arguments: list[str] | None = None) -> None:
    """Predict as the command line says."""
    settings = parse(PredictSettings, __doc__, arguments)
    judge = whole_scans if settings.nifti else prediction
    with machine.going_on_later("scans" if settings.nifti else "images", settings.out):
        report = judge.predict(settings)
    print("\n".join(judge.headline(report)))
    first = whole_scans.derivatives.DESCRIPTION if settings.nifti else prediction.GRID
    print(f"written: {settings.out / first}, {settings.out / prediction.TABLE} and all else", flush=True)
    endings.say(settings.out / INDEX)
