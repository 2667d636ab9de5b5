"""Models and the settings of sample.py -> finished images: new ones or completions, the best of several candidates.

With `--reject N` each image is drawn N times, with random numbers of (seed, image, candidate), and the best is kept:
- likelihood: the candidate whose codes are the likeliest, -log2 p of both maps at temperature 1 in bits per code. Of a
  completion the codes that stay count too: those after the drawn ones say how well they fit.
- agreement: the one that, decoded to 8 bit and encoded again, has the most of its codes back (share of all codes, 0…1):
  codes that come back lie where the autoencoder has learned to put images.

NOTE The likeliest image is not the most typical one: of a thousand throws of a coin that shows heads in six of ten,
the likeliest are all heads. Measured with one small prior (64 x 64 pixels, 32 images): the best of 8 by likelihood have
brains that cover 24 % of the picture and not 30 %, are darker, and vary less (standard deviation of a pixel over images
0.042 and not 0.056); by agreement 25 % and 0.047. Both favour background, which is easy.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from vqvae2.images.dataset import to_bytes
from vqvae2.models.autoencoder import TrainedVqvae, Vqvae
from vqvae2.models.code_maps import CodeMaps
from vqvae2.priors.base import Prior
from vqvae2.sampling import sampler
from vqvae2.sampling.inpainting import Incomplete
from vqvae2.sampling.settings import SampleSettings, of_level

SCORES = {"likelihood": "bits_per_code", "agreement": "agreement"}
"""The score that --reject-by compares. The best candidate has the fewest bits, or the most agreement."""
OF_ALL = "_of_all"
"""This ends the name of a score's mean over all candidates; the kept candidate's score has the name without it."""


@dataclass(frozen=True)
class Request:
    """One image that is to be drawn.

    Args:
        name: the name of its file, without the ending.
        number: the number that chooses its random numbers: the image's, or the completion's.
        item: the number of the image that it completes.
    """

    name: str
    number: int
    item: int | None = None


@dataclass(frozen=True)
class Finished:
    """One image that has been drawn.

    Args:
        name: the name of its file, without the ending.
        image: uint8 `[channels, height, width]`.
        codes: the codes of each level, int64 `[height, width]`, on the CPU.
        scores: the scores of its candidates, where there are several.
    """

    name: str
    image: torch.Tensor
    codes: dict[str, torch.Tensor]
    scores: dict[str, float] = field(default_factory=dict)


def requests_of(settings: SampleSettings, incomplete: Incomplete | None) -> list[Request]:
    """Return all images that the settings ask for; the completions of one image stand together."""
    if incomplete is None:
        return [Request(f"{number:06d}", number) for number in range(settings.count)]
    return [Request(f"{name}-{number:06d}", number, item) for item, name in enumerate(incomplete.names)
            for number in range(settings.count)]


class Drawer:
    """Draws the images that are requested.

    Args:
        priors: the prior of each level that the VQ-VAE has.
        incomplete: the images that are to be completed; None for new ones.
    """

    def __init__(self, vqvae: TrainedVqvae, priors: Mapping[str, Prior], settings: SampleSettings,
                 incomplete: Incomplete | None = None):
        self.model, self.settings, self.incomplete = vqvae.model, settings, incomplete
        own = {level: priors[level] for level in vqvae.model.levels}
        self.priors = sampler.in_float64(own) if settings.precision == "auto" else own
        self.rules = {level: sampler.SamplingRule(*(of_level(getattr(settings, name), level) for name in (
            "temperature", "top_k", "top_p", "guidance"))) for level in vqvae.model.levels}

    def draw(self, requests: Sequence[Request],
             on_codes: Callable[[int], object] = lambda _: None) -> Iterator[Finished]:
        """Yield each image as soon as it is finished, in order.

        `on_codes` is told how many codes have been settled since; each image has the same number, for each candidate.
        """
        tries = [(request, candidate) for request in requests for candidate in range(self.settings.reject)]
        candidates: list[Finished] = []
        for first in range(0, len(tries), self.settings.batch):
            batch = tries[first:first + self.settings.batch]
            for (request, number), drawn in zip(batch, self._draw_batch(batch, on_codes)):
                candidates.append(drawn)
                if number == self.settings.reject - 1:
                    yield self._finish(request, candidates)
                    candidates = []

    @torch.no_grad()
    def _draw_batch(self, batch: Sequence[tuple[Request, int]], on_codes: Callable[[int], object]) -> list[Finished]:
        """Draw some candidates together; they are decoded and judged alone, lest the last bits depend on the batch."""
        numbers = [request.number for request, _ in batch]
        facts = sampler.known_of(self.priors, self.settings.condition, numbers, self.settings.seed)
        stay = None if self.incomplete is None else {
            level: maps[[request.item for request, _ in batch]] for level, maps in self.incomplete.codes.items()}
        maps = sampler.draw_maps(self.priors, numbers, self.settings.seed, self.rules, facts,
                                 lambda: on_codes(len(batch)), stay, [candidate for _, candidate in batch])
        alone = [{level: codes[i:i + 1] for level, codes in maps.items()} for i in range(len(batch))]
        images = [to_bytes(self.model.decode(codes)) for codes in alone]
        scores: list[dict[str, float]] = [{}] * len(batch)
        if self.settings.reject > 1:
            values = (sampler.bits_per_code(self.priors, maps, facts).tolist()
                      if self.settings.reject_by == "likelihood" else
                      [agreement(self.model, image, codes) for image, codes in zip(images, alone)])
            scores = [{SCORES[self.settings.reject_by]: value} for value in values]
        return [Finished(request.name, image[0], {level: maps[0].cpu() for level, maps in codes.items()}, score)
                for (request, _), image, codes, score in zip(batch, images, alone, scores)]

    def _finish(self, request: Request, candidates: Sequence[Finished]) -> Finished:
        """Return the best candidate, the first one of equals, as the finished image."""
        choose, score = min if self.settings.reject_by == "likelihood" else max, SCORES[self.settings.reject_by]
        best = candidates[0]
        if len(candidates) > 1:
            best = choose(candidates, key=lambda candidate: candidate.scores[score])
            mean = sum(candidate.scores[score] for candidate in candidates) / len(candidates)
            best = replace(best, scores={**best.scores, score + OF_ALL: mean})
        return best if self.incomplete is None else replace(
            best, image=self.incomplete.completed(request.item, best.image))


@torch.no_grad()
def agreement(model: Vqvae, image: torch.Tensor, codes: Mapping[str, torch.Tensor]) -> float:
    """Return the share, 0…1, of an image's codes, all levels together, that encoding it again gives back.

    Args:
        image: uint8 `[1, channels, height, width]`; codes: for each level `[1, height, width]`.
    """
    again = model.encode(image.to(next(iter(codes.values())).device).to(torch.float32).div_(255))
    same = torch.cat([(again[level] == maps).flatten() for level, maps in codes.items()])
    return same.double().mean().item()


def rejection_report(settings: SampleSettings, maps: CodeMaps) -> dict:
    """Return what --reject came to, for sample.json; {} without it."""
    if settings.reject == 1:
        return {}
    score = SCORES[settings.reject_by]
    kept, of_all = (maps.scores[name].mean().item() for name in (score, score + OF_ALL))
    return {"rejection": {"by": settings.reject_by, "candidates": settings.reject, "share_kept": 1 / settings.reject,
                          "unit": score, "mean_kept": kept, "mean_of_all": of_all}}
