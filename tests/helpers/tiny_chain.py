"""A tiny chain -> each command that writes to a folder, as it is run, and which bytes of its results are promised.

    <root>/given/    scans, slices, and trained models
    <root>/out/      what the command writes
    <root>/NAME/     where a start of the command is at work
"""

import shutil
from collections.abc import Callable
from pathlib import Path

from conftest import TINY, TINY_PRIOR, TINY_VQVAE, files_in, write_slices
from hostile.part import Ended, command
from resuming import differences
from scan_files import save_bids

from vqvae2.common.files import LEFT_OVERS

MODELS = "--vqvae ../given/vqvae --top ../given/top --bottom ../given/bottom"
VQVAE = ["--data", "../given/slices", *TINY, *TINY_VQVAE]
PRIOR = ["--data", "../given/slices", *TINY, *TINY_PRIOR, "--vqvae", "../given/vqvae"]
OFTEN = ["--checkpoint-minutes", "0.001"]
COMMANDS = {
    "predict": "predict --vqvae ../given/vqvae ../given/slices/test ../given/slices/validate --batch 3 --out ../out",
    "extract": "extract --scans ../given/scans --out ../out --size 24 --workers 1",
    "sample": f"sample {MODELS} --count 24 --batch 4 --out ../out",
    "evaluate": f"evaluate {MODELS} --data ../given/slices --samples 4 --likelihood --out ../out",
    "compress": f"compress {MODELS} ../given/slices/test ../given/slices/validate --batch 3 --out ../out",
    "decompress": f"decompress {MODELS} ../given/small --batch 3 --out ../out",
    "train-vqvae": " ".join(["train-vqvae", "--results ../out --savename run", *VQVAE, *OFTEN]),
    "train-prior": " ".join(["train-prior", "--level top --copies 1 --results ../out --savename run", *PRIOR, *OFTEN])}
"""The command lines, by the commands' names, as they are given in a folder beside `given`."""
RUN = Path("out/oasis/run")


def prepare(folder: Path) -> None:
    """Make what all commands are given."""
    write_slices(folder / "given" / "slices")
    save_bids(folder / "given" / "scans", 12)
    for name, words in (("vqvae", ["train-vqvae", *VQVAE, "--epochs", "4"]),
                        ("top", ["train-prior", "--level", "top", *PRIOR, "--epochs", "1"]),
                        ("bottom", ["train-prior", "--level", "bottom", *PRIOR, "--epochs", "1"])):
        ended = start([*words, "--results", "../made", "--savename", name], folder)
        assert ended.status == 0, ended.err
        shutil.move(folder / "made" / "oasis" / name, folder / "given" / name)
    ended = start(["compress", *MODELS.split(), "../given/slices/test", "--out", "../given/small"], folder)
    assert ended.status == 0, ended.err
    shutil.rmtree(folder / "given" / "vqvae" / "codes")  # the trainings of priors extract them


def start(words: list[str], root: Path, name: str = "first", while_running: Callable[[int], object] | None = None,
          ) -> Ended:
    """Return how a command ended that was started in a folder of its own in `root`."""
    (root / name).mkdir(exist_ok=True)
    # The first of two may be halted until the second has ended.
    return command(words, root / name, limit=300, while_running=while_running)


def copied(prepared: Path, root: Path) -> Path:
    """Return a new root with a copy of what all commands are given; files keep their times."""
    shutil.copytree(prepared / "given", root / "given")
    return root


def assert_as_undisturbed(name: str, root: Path, prepared: Path, folder: Path) -> None:
    """Raise AssertionError unless the results in `root` are those of a run alone, and nothing half-written is left."""
    alone = copied(prepared, folder / "alone")
    ended = start(COMMANDS[name].split(), alone)
    assert ended.status == 0, ended.err
    if name.startswith("train-"):
        assert differences(alone / RUN, root / RUN) == []
        assert files_in(root / "given") == files_in(alone / "given")
    else:
        found, expected = ({path: content for path, content in files_in(folder / "out").items()
                            if not path.startswith(".scans/")} for folder in (root, alone))
        assert found == expected, sorted({*found.items()} ^ {*expected.items()})
    half_written = [path for pattern in (LEFT_OVERS, ".lock") for path in root.rglob(pattern)]
    assert half_written == []
