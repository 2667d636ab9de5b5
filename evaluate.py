"""A VQ-VAE, and its priors where given -> metrics.json and figures about one split.

    python evaluate.py --vqvae brain-128 --top brain-128-top --bottom brain-128-bottom --out report
On the validation images, reconstructions only:
    python evaluate.py --vqvae brain-128 --split validate --out report-validate

What each figure means is defined in the README; 95 % intervals are over subjects.
"""

from vqvae2 import reports
from vqvae2.config import EvaluateSettings, parse
from vqvae2.errors import run_script


def main(arguments: list[str] | None = None) -> None:
    """Evaluate as the command line says."""
    settings = parse(EvaluateSettings, __doc__, arguments)
    report = reports.evaluate(settings).metrics
    print("\n".join(summary(report)))
    print(f"written: {settings.out / 'metrics.json'}, {settings.out / 'strip.png'} and other figures")


def summary(report: dict) -> list[str]:
    """Return the headline figures of a metrics.json, one line each."""
    full, brain = (report["reconstruction"][area]["ssim"] for area in ("full", "brain"))
    lines = [f"{report['split']}: {report['images']} images of {report['subjects']} subjects, "
             f"{report['seen_in_training']['images']} seen in training",
             f"SSIM full picture {full['mean']:.4f} (95 % {full['ci_low']:.4f} to {full['ci_high']:.4f}), "
             f"minimum {full['min']:.4f}; inside the brain {brain['mean'] or float('nan'):.4f}"]
    for level, one in report["codes"].items():
        lines.append(f"{level}: {one['used']} of {one['size']} codes used, perplexity {one['perplexity']:.1f}, "
                     f"shuffle drop {one['shuffle_drop']:.3f}")
    for level in report["codes"]:
        if report["priors"] and level in report["priors"]:
            one = report["priors"][level]
            beside = one["context_model_bits"]
            lines.append(f"{level} prior: {one['bits_per_code']:.3f} bits per code" +
                         (f", context model {beside:.3f}" if beside else ""))
    if report["priors"] and "bits_per_pixel" in report["priors"]:
        lines.append(f"both levels: {report['priors']['bits_per_pixel']:.4f} bits per pixel, raw codes "
                     f"{report['raw_bits_per_pixel']:.4f}")
    return lines


if __name__ == "__main__":
    run_script(main)
