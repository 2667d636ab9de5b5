"""How fast Chromium opens an extraction's index.html, as ratios to other pages that it opens in the same run.

    python benchmarks/page.py
    python benchmarks/page.py --scans 20000 --rounds 5 --planes axial coronal sagittal

Made-up scans, each with thumbnails of noise in an oval, whose JPEGs are larger than a brain's. A page counts as open
when it was loaded and the frame after that was painted; the seconds are the page's own clock (performance.now), which
starts when the browser is told to open it. The pages come from the disk's cache, one after the other in each round.

References: an empty page, and `files`: the same cards' pictures as single JPEG files in a plain page of <img> elements,
which is what index.html would be without sheets.
"""

import io
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

from chromium import Chromium, find_chromium
from common import processor
from made_up_scans import made_up

from vqvae2.common.errors import run_script
from vqvae2.settings import checks, parsing
from vqvae2.slices.page import QUALITY, THUMBNAIL, ShownScan, page_bytes
from vqvae2.slices.settings import Plane

WHEN_PAINTED = """addEventListener("load", () => requestAnimationFrame(() => requestAnimationFrame(
    () => { window.secondsToPainted = performance.now() / 1000; })));"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """Settings of benchmarks/page.py."""

    scans: int = 5000
    """Made-up scans, a subject each."""
    planes: tuple[Plane, ...] = ("axial",)
    """Pictures of each scan."""
    rounds: int = 5
    """Times that each page is opened; the median counts."""
    picture: Path | None = None
    """Write what the window shows of index.html here, as a PNG."""

    def __post_init__(self) -> None:
        checks.expect(self.rounds >= 1, "--rounds", "at least 1", self.rounds, "The default is 5.")
        checks.expect(self.scans >= 1, "--scans", "at least 1", self.scans, "The default is 5000.")


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its ratios."""
    settings = parsing.parse(BenchmarkSettings, __doc__, arguments)
    checks.expect(find_chromium() is not None, "PATH", "chromium, chromium-browser or google-chrome", "none",
                  "Install Chromium.")
    scans = made_up(settings.scans, settings.planes)
    with tempfile.TemporaryDirectory() as name, Chromium() as browser:
        pages = {"index.html": Path(name, "index.html"), "empty": Path(name, "empty.html"),
                 "files": Path(name, "files.html")}
        pages["index.html"].write_bytes(page_bytes(scans))
        pages["empty"].write_text("<!doctype html><title>empty</title>")
        pages["files"].write_text(page_of_files(scans, Path(name, "files")))
        version = browser.send("Browser.getVersion", in_tab=False)["product"]
        print(f"{settings.scans} scans, {len(settings.planes)} picture(s) each; {version}; {processor()}")
        seconds: dict[str, list[float]] = {page: [] for page in pages}
        for _ in range(settings.rounds):
            for page, path in pages.items():
                browser.open(path, before=WHEN_PAINTED)
                seconds[page].append(browser.evaluate("secondsToPainted"))
                if page == "index.html":
                    found = browser.evaluate("document.querySelectorAll('article').length")
                    checks.expect(found == settings.scans, "index.html", f"{settings.scans} scans", found, "A bug.")
        if settings.picture is not None:
            browser.open(pages["index.html"])
            browser.picture(settings.picture)
        for page, each in seconds.items():
            print(f"  {page:10s} {statistics.median(each):6.2f} s (least {min(each):.2f}, most {max(each):.2f})")
        print(f"  size of index.html: {pages['index.html'].stat().st_size / 1e6:.1f} MB")
        for page in ("empty", "files"):
            ratio = statistics.median(seconds["index.html"]) / statistics.median(seconds[page])
            print(f"ratio index.html/{page} {ratio:.2f}x")


def page_of_files(scans: list[ShownScan], folder: Path) -> str:
    """Write each thumbnail as a JPEG of its own, and return a page that shows them all."""
    folder.mkdir()
    lines = []
    for scan in scans:
        for number in range(len(scan.planes)):
            cell = np.frombuffer(scan.picture, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL)[number]
            content = io.BytesIO()
            Image.fromarray(cell).save(content, format="JPEG", quality=QUALITY)
            path = folder / f"{len(lines)}.jpg"
            path.write_bytes(content.getvalue())
            lines.append(f'<img width="{THUMBNAIL}" height="{THUMBNAIL}" src="{folder.name}/{path.name}">')
    return "<!doctype html><title>files</title>" + "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
