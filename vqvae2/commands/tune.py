r"""Images -> many trainings with different settings -> the best settings as a preset.

A first search, ten short trainings of the smallest preset:
    vqvae2 tune --study first --preset vqvae2-tiny --trials 10 --epochs 5
Forty trainings of ten epochs, two at a time (with several GPUs each training has its own):
    vqvae2 tune --study brain-128 --dataset oasis --batch 16 --epochs 10 --trials 40 --workers 2
Only two settings, one in a range of yours and one of three values, on pictures of a folder:
    vqvae2 tune --study rate --dataset folder --data my-pictures --size 128 --batch 32 --epochs 10 \
        --search learning_rate=1e-4..1e-3 codebook_size=64,128,256 --trials 12

Each trial is a training as train_vqvae.py makes it, of --epochs epochs, in a folder of its own in results/tune/NAME/.
All flags of train_vqvae.py, and --preset, give the settings that the trials have in common, and all settings of the
first trial; --search gives the settings that are searched, by default
    learning_rate=0.0001..0.003  codebook_size=128,256,512,1024  embedding_dim=16,32,64,128  commitment=0.05..1
    decay=0.9..0.999  ssim_weight=0.003..0.3  gradient_weight=0..0.1  prediction=0.05..1

The score is the SSIM of the validation images, less a penalty for codes that are not used well; docs/tuning.md has the
formula. More codes always raise SSIM, so codebooks of more than --bits-per-pixel raw bits per pixel (0.75) are not
tried. A trial that is worse than half of the others at the same epoch is pruned.

The same command goes on where a study was stopped, even in the middle of a training; a larger --trials adds trials.
    results/tune/NAME/best.toml     the best so far: python train_vqvae.py --preset results/tune/NAME/best.toml
    results/tune/NAME/trials.csv    all trials; trials.png shows them
    results/tune/NAME/study.db      Optuna's database, for its own viewers too
The command needs one more package: pip install -e '.[tune]'
"""

import dataclasses

import numpy as np

from vqvae2.commands import endings
from vqvae2.common import distributed
from vqvae2.common.errors import expect
from vqvae2.common.folder_lock import claimed
from vqvae2.images import dataset
from vqvae2.runs import writers
from vqvae2.settings.parsing import parse, path_from_environment
from vqvae2.training import tuning


def main(arguments: list[str] | None = None) -> None:
    """Search as the command line says."""
    settings = parse(tuning.TuneSettings, __doc__, arguments)
    expect(tuning.optuna is not None, "vqvae2 tune", "the package optuna", "none",
           "Install it: pip install -e '.[tune]'")
    writers.check_installed(settings.log)
    expect(distributed.launched_world_size() == 1, "vqvae2 tune", "to be started without torchrun",
           f"{distributed.launched_world_size()} processes", "--workers N trains several trials at a time.")
    settings = dataclasses.replace(settings, data=path_from_environment(settings.data, "SLICES_PATH", "--data"))
    images = dataset.load_images(settings, ("train", "validate"), int(np.prod(settings.downsample)))
    for split in ("train", "validate"):
        expect(len(images.splits[split]) > 0, "--data", f"at least 1 image to {split}", "0",
               "Give --split other shares.")
    data = images.describe()
    space = tuning.allowed_space(settings, *images.shape[1:])
    with claimed(settings.folder, f"--savename {settings.savename}", "--savename") as claim:
        claim.remove_left_overs()
        study = tuning.begin(settings, space, data["data_hash"])
        print(f"{settings.folder}: {len(tuning.results(study))} of {settings.trials} trials done, {settings.workers} "
              f"at a time; searching {', '.join(tuning.in_words(*searched) for searched in space.items())}", flush=True)
        tuning.search(settings, study, space, data)
        rows = tuning.results(study)
        best = tuning.write_results(rows, settings, space, data)
    expect(any(row["state"] != "failed" for row in rows), f"--savename {settings.savename}", "a trial that ends well",
           f"none of {len(rows)}", f"The last one's reason: {rows[-1]['reason']}")
    expect(best is not None, f"--savename {settings.savename}", "a trial whose codes are fit for a prior",
           f"none of {len(rows)}", f"{settings.folder / 'trials.csv'} says what they had: give more --epochs, or "
           "raise --trials.")
    print(f"Done: {settings.folder / 'best.toml'}, trial {best['trial']}, {tuning.summary_line(best, settings)}")
    endings.say(settings.folder / "trials.png", "train-vqvae", "--preset", settings.folder / "best.toml", "--data",
                settings.data, "--epochs", 10 * settings.epochs, "--savename", f"{settings.savename}-best")
