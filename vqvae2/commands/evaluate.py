"""A VQ-VAE, and its priors if they are given -> metrics.json, figures and a page (index.html) about one split.

    python evaluate.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out report
On the validation images, reconstructions only:
    python evaluate.py --vqvae brain-128 --split validate --out report-validate
Maps of what the priors find unusual in each image (maps/likelihood/*.npy and *.png), and how well these maps find
synthetic lesions, compared with an intensity threshold and the reconstruction error (lesions.png, AUROC per pixel):
    python evaluate.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out maps --likelihood --lesions
Whether samples hold what they are told, such as their position, and have as much of each tissue as real slices have:
    python evaluate.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out report --anatomy

The same command goes on after Ctrl-C, a signal or a kill with the sections (reconstruction, codes, priors, samples, …)
that are not finished. --probe, --rates, --likelihood, --lesions and --anatomy may be added later. Other settings,
models or data need another --out.

vqvae2/metrics/similarity.py defines SSIM and the other metrics; 95 % intervals are over subjects.
vqvae2/evaluation/surprise.py defines the maps, vqvae2/evaluation/lesions.py the lesions and their scores,
vqvae2/evaluation/anatomy.py what is read from samples.
"""

from pathlib import Path

from vqvae2.commands import endings
from vqvae2.common import machine
from vqvae2.evaluation import report, text
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.evaluation.widgets import INDEX
from vqvae2.settings.parsing import parse


def main(arguments: list[str] | None = None) -> None:
    """Evaluate as the command line says."""
    settings = parse(EvaluateSettings, __doc__, arguments)
    with machine.going_on_later("sections", settings.out):
        evaluation = report.evaluate(settings)
    for name, value in text.headline(evaluation.metrics):
        print(f"{name}: {value}")
    print(f"written: {settings.out / 'metrics.json'}, {settings.out / 'strip.png'} and other figures")
    endings.say(settings.out / INDEX, "predict", "--vqvae", settings.vqvae, "--out",
                f"{Path(settings.vqvae).name}-predicted", "SCAN",
                show=settings.open)
