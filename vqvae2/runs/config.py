"""What a run's config says -> the same, with the type and the range of each of its values checked.

A config is what config.json holds, and what the metadata of model.safetensors repeats: the settings of a training, and
the data and the other models that it was given. Its values are read in many places, as `config["image_shape"]`; each
of them may have been written by a stranger. The settings themselves are checked where their class is known, by
`from_dict`.
"""

from dataclasses import dataclass, field
from typing import Literal

from vqvae2.common.errors import expect
from vqvae2.settings.checks import CUTTING, Checked
from vqvae2.settings.stored import ADVICE, from_dict


@dataclass(frozen=True, kw_only=True)
class Cutting(Checked):
    """How extract_slices.py has cut the slices of a folder; what an older version has not recorded is None."""

    planes: tuple[Literal["axial", "coronal", "sagittal"], ...] | None = None
    extent: tuple[float, float] | None = None
    size: int | None = None
    field_of_view: float | None = None
    bits: Literal[8, 16] | None = None

    RULES = CUTTING


@dataclass(frozen=True, kw_only=True)
class DataFacts(Checked):
    """What a config says of the images."""

    folder: str = ""
    images: dict[str, int] = field(default_factory=dict)
    subjects: dict[str, int] = field(default_factory=dict)
    subjects_known: bool = True
    shared_subjects: int = 0
    extraction: Cutting | None = None
    synthetic: bool = False


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """A run's config; None stands for what only other kinds of run have, or what an older version has not written."""

    settings: dict[str, object]
    kind: str | None = None
    global_batch: int | None = None
    run_id: str | None = None
    data: DataFacts | None = None
    data_hash: str | None = None
    vqvae_hash: str | None = None
    vqvae_settings: dict[str, object] | None = None
    init_hash: str | None = None
    facts_hash: str | None = None
    image_shape: tuple[int, int, int] | None = None
    shape: tuple[int, int] | None = None
    top_shape: tuple[int, int] | None = None
    training_images: tuple[str, ...] | None = None
    training_subjects: tuple[str, ...] | None = None
    held_out_subjects: tuple[str, ...] | None = None
    columns: tuple[dict[str, object], ...] | None = None
    reference_bits_per_code: dict[str, float] | None = None
    versions: dict[str, str] | None = None
    command: str | None = None

    RULES = (
        ("global_batch", lambda batch: 1 <= batch < 2**31, "1 or more", "The file is damaged."),
        ("image_shape", lambda shape: 1 <= shape[0] <= 4 and all(1 <= side <= 8192 for side in shape[1:]),
         "1 to 4 channels, and a height and a width of 1 to 8192", "The file is damaged."),
        ("shape top_shape", lambda shape: all(1 <= side <= 4096 for side in shape), "a height and a width of 1 to 4096",
         "The file is damaged."),
        ("columns", lambda columns: len(columns) <= 256, "at most 256", "The file is damaged."))


def need(config: dict, *names: str) -> None:
    """Raise UserError unless a config has the values `names`, which other kinds of run need not have."""
    for name in names:
        expect(config.get(name) is not None, f"config.{name}", "a value", "nothing", ADVICE)


def checked(config: object, where: str) -> dict:
    """Return a config that was read from a file. Raises: UserError, which begins with `where`, if it is none."""
    from_dict(Config, config, where)
    return config
