r"""Images -> trainings with other settings, one after the other -> the best settings as a preset.

A first search, ten short trainings of the smallest preset:
    vqvae2 tune --study first --preset vqvae2-tiny --trials 10 --epochs 5
Forty trainings of ten epochs, two at a time (on a machine with several GPUs each has its own):
    vqvae2 tune --study brain-128 --dataset oasis --batch 16 --epochs 10 --trials 40 --workers 2
Two settings alone, one in a range of yours and one of three values, on pictures of a folder:
    vqvae2 tune --study rate --dataset folder --data my-pictures --size 128 --batch 32 --epochs 10 \
        --search learning_rate=1e-4..1e-3 codebook_size=64,128,256 --trials 12

Each trial is a training as train_vqvae.py makes it, of --epochs epochs, in a folder of its own in results/tune/NAME/.
All flags of train_vqvae.py, and --preset, say what the trials have in common, and what the first trial tries; --search
says what is searched, by default
    learning_rate=0.0001..0.003  codebook_size=128,256,512,1024  embedding_dim=16,32,64,128  commitment=0.05..1
    decay=0.9..0.999  ssim_weight=0.003..0.3  gradient_weight=0..0.1  prediction=0.05..1

The score is the SSIM of the validation images, less what is missing in the use of the codes; docs/tuning.md has the
formula. More codes would always buy SSIM, so codebooks of more than --bits-per-pixel raw bits per pixel (0.75) are not
tried. A trial that is worse than half of the others at the same epoch is pruned.

The same command goes on where a study was stopped, in the middle of a training too; more --trials make it longer.
    results/tune/NAME/best.toml     the best so far: python train_vqvae.py --preset results/tune/NAME/best.toml
    results/tune/NAME/trials.csv    all trials; trials.png shows them
    results/tune/NAME/study.db      Optuna's database, for its own viewers too
It needs one more package: pip install -e '.[tune]'
"""

import dataclasses

from vqvae2.common import rendezvous
from vqvae2.settings.checks import expect
from vqvae2.settings.parsing import parse, path_from_environment
from vqvae2.training import tuning, tuning_study
from vqvae2.training.tuner import Tuner, describe_data
from vqvae2.training.tuning_settings import TuneSettings
from vqvae2.training.tuning_study import Study


def main(arguments: list[str] | None = None) -> None:
    """Search as the command line says."""
    settings = parse(TuneSettings, __doc__, arguments)
    tuning_study.check_optuna()
    expect(rendezvous.launched_world_size() == 1, "vqvae2 tune", "to be started without torchrun",
           f"{rendezvous.launched_world_size()} processes", "--workers N trains several trials at a time.")
    settings = dataclasses.replace(settings, data=path_from_environment(settings.data, "SLICES_PATH", "--data"))
    folder = settings.out or settings.results / "tune" / settings.savename
    with tuning_study.only_one(folder, settings.savename):
        data = describe_data(settings)
        space = tuning.allowed_space(settings, *data["image_shape"][1:])
        study = Study(folder, settings, space, data["data_hash"])
        before = len(study.results())
        print(f"{folder}: {before} of {settings.trials} trials begun, {settings.workers} at a time; searching "
              f"{', '.join(f'{name}={one}' for name, one in space.items())}", flush=True)
        Tuner(settings, folder, study, data).run()
        results = study.results()
        best = tuning.write_results(folder, results, settings, space, data)
    expect(any(one.state != "failed" for one in results), f"--savename {settings.savename}", "a trial that ends well",
           f"none of {len(results)}", f"The last one's reason: {results[-1].reason}")
    expect(best is not None, f"--savename {settings.savename}", "a trial whose codes are fit for a prior",
           f"none of {len(results)}", f"{folder / 'trials.csv'} says what they had: give more --epochs, or "
           "raise --trials.")
    print(f"Done: {folder / 'best.toml'}, trial {best.number}, score {best.score:.4f} "
          f"({tuning.in_words(best, settings.codebook_size)})")
