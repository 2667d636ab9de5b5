"""What a command has made -> its last lines: the picture to look at, and the next command, ready to paste."""

import json
import os
import shlex
import sys
import webbrowser
from pathlib import Path

from vqvae2.common.errors import launched_rank
from vqvae2.common.progress import PROGRESS_FILE


def say(look: Path | None, *following: str | Path, show: bool = False) -> None:
    """Print where to look, and the next command; rank 0 alone.

    Args:
        look: the picture or page; None, or one that is not there, is not named.
        following: words of the next command after `vqvae2`; none for no command. A word in capitals, such as SCANS, is
            for the user to fill in.
        show: open `look` too, where there is a screen.
    """
    if launched_rank() != 0 or os.environ.get(PROGRESS_FILE):  # whoever started this command knows what comes next
        return
    if look is not None and look.exists():
        print(f"look at: {look}")
        if show and not open_it(look):
            print("(not opened: there is no screen here)")
    if following:
        print(f"next:    vqvae2 {shlex.join(map(str, following))}")
    sys.stdout.flush()


def open_it(path: Path) -> bool:
    """Open a file in the browser; return whether that was possible."""
    has_screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(has_screen) and webbrowser.open(path.resolve().as_uri())


def after_training(folder: Path, *look: str) -> None:
    """Print the last lines of a training: its picture, and what comes next with it and the runs beside it.

    Args:
        folder: the run's. look: its pictures, of which the last one is named; `*` stands for any text.
    """
    own = config_of(folder)
    settings = own.get("settings", {})
    vqvae = folder if own.get("kind") == "vqvae" else Path(settings.get("vqvae", ""))
    beside = sorted(folder.parent.glob("*/model.safetensors"), key=lambda path: path.stat().st_mtime)
    after_it = {config["kind"]: path.parent for path in beside if (config := config_of(path.parent)).get("kind")
                and Path(config["settings"].get("vqvae") or "").name == vqvae.name}
    levels = ("top", "bottom")[:config_of(vqvae).get("settings", {}).get("levels", 2)]
    missing = [level for level in levels if f"{level} prior" not in after_it]
    if missing:
        preset = settings.get("preset")
        more = ["--preset", preset] if preset else [
            "--dataset", settings.get("dataset"), "--epochs", "30", "--batch", "8"]
        following = ["train-prior", "--level", missing[0], "--vqvae", vqvae, *more, "--results", folder.parents[1],
                     "--savename", f"{vqvae.name}-{missing[0]}"]
    else:
        following = ["sample", "--vqvae", vqvae]
        for level in levels:
            following += [f"--{level}", after_it[f"{level} prior"]]
        following += ["--decoder", after_it["decoder"]] if "decoder" in after_it else []
        following += ["--count", "16", "--out", f"{vqvae.name}-samples"]
    pictures = [path for name in look for path in sorted(folder.glob(name))]
    say(pictures[-1] if pictures else None, *following)


def config_of(folder: Path) -> dict:
    """Return a run's config.json; {} where it cannot be read."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
