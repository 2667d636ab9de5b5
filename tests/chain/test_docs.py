"""Pages that can be trusted: links lead somewhere, pictures and flags exist; who cites us finds what to cite."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image

import vqvae2
from vqvae2.evaluation.settings import EvaluateSettings
from vqvae2.sampling.settings import SampleSettings
from vqvae2.training.settings import TrainPrior, TrainVqvae

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "launch").glob("*.md")),
         *sorted((ROOT / "pretrained").glob("*/*.md"))]
HOW = ROOT / "docs/how-it-works.md"
PICTURES = ROOT / "docs/pictures"
MODELS = (TrainVqvae, TrainPrior, SampleSettings, EvaluateSettings)


def prose(page):
    """A page's text without code, in which brackets may mean anything."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4,}.*$|`[^`\n]*`", "", text, flags=re.MULTILINE)


def links_of(page):
    """Where a page's links and pictures lead, but for the web."""
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", prose(page)) + re.findall(
        r"(?:src|href)=\"([^\"]+)\"", prose(page))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors_of(page):
    """The names by which links reach the headings of a page, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_and_picture_of_a_page_is_there(page):
    for link in links_of(page):
        file, _, anchor = link.partition("#")
        aim = (page.parent / file).resolve() if file else page
        assert aim.exists(), f"{page.name}: {link}"
        if anchor and aim.suffix == ".md":
            assert anchor in anchors_of(aim), f"{page.name}: {link}"


def test_every_picture_is_shown_on_a_page():
    shown = {(page.parent / link.partition("#")[0]).resolve() for page in PAGES for link in links_of(page)}
    assert sorted(path.name for path in PICTURES.iterdir() if path not in shown) == []


def test_links_are_found_and_code_is_not_taken_for_them(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("# A heading: `x`, 2 * 3\n[a](b.md#c) ![d](e.png \"f\")\n[g](https://h) `[i](j)`\n    [k](l)\n"
                    "```\n[m](n)\n# no heading\n```\n<img src=\"o.png\">\n")
    assert links_of(page) == ["b.md#c", "e.png", "o.png"]
    assert anchors_of(page) == {"a-heading-x-2--3"}


class TestHowItWorks:
    def test_every_flag_that_it_names_exists(self):
        named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", HOW.read_text(encoding="utf-8")))
        known = {name.replace("_", "-") for settings in MODELS for name in settings.__dataclass_fields__} | {"help"}
        assert named - known == set()
        assert len(named) > 15

    def test_every_paper_that_it_cites_is_in_its_list_and_the_reverse(self):
        text, papers = HOW.read_text(encoding="utf-8").split("\n## Papers\n")
        listed = re.findall(r"^\| (\[[A-Z]\d*\]) \|", papers, re.MULTILINE)
        cited = set(re.findall(r"\[[A-Z]\d*\](?!\()", text))
        assert listed == sorted(listed)
        assert cited == set(listed)

    def test_its_bits_are_those_of_the_shipped_weights(self):
        """7 bits each for 16 x 16 and 32 x 32 codes of 128 x 128 pixels, and the figures of docs/results.md."""
        text, results = (path.read_text(encoding="utf-8") for path in (HOW, ROOT / "docs/results.md"))
        section = results.split("<!-- priors-128 -->")[1].split("<!-- end -->")[0]
        total = 0.0
        for level, codes in (("top", 16 * 16), ("bottom", 32 * 32)):
            bits = float(re.search(rf"\| {level} \| ([\d.]+) ", section)[1])
            total += bits * codes / 128**2
            row = next(line for line in text.splitlines() if line.startswith(f"| {level} | "))
            for part in (f"= {codes:,} ", f" {codes * 7:,} bits ", f" {bits:.2f} ", f" {codes * 7 / 128**2:.3f} raw",
                         f" {bits * codes / 128**2:.3f} under"):
                assert part in row, part
        assert f"{1280 * 7 / 128**2:.3f} raw, {total:.3f} under the priors" in text

    def test_its_diagrams_are_drawings_that_need_nothing_else_and_are_readable_on_any_background(self):
        for path in sorted(PICTURES.glob("how-it-works*.svg")):
            root = ElementTree.parse(path).getroot()
            title, first = root[0], next(element for element in root if element.tag.endswith("rect"))
            assert title.tag.endswith("title")
            assert len(title.text) > 50
            assert (first.get("fill"), first.get("width")) == ("white", root.get("width"))
            links = [value for part in root.iter() for name, value in part.attrib.items() if name.endswith("href")]
            assert all(link.startswith("data:image/png;base64,") for link in links)
            assert path.stat().st_size < 150_000

    def test_its_picture_of_codes_is_small(self):
        path = PICTURES / "levels-128.png"
        assert path.stat().st_size < 200_000
        with Image.open(path) as picture:
            assert picture.width < 1000


class TestSummaries:
    """What stands under "In short" is what the page says further down, which tools.make_results makes anew."""

    RESULTS = ROOT / "docs/results.md"

    def summary_and_rest(self, page):
        _, summary, rest = re.split(r"^## In short$|^## (?!In short)", page.read_text(encoding="utf-8"), maxsplit=2,
                                    flags=re.MULTILINE)
        return summary, rest

    @pytest.mark.parametrize(("row", "cells"), [
        ("[SSIM of reconstructions]", [("reconstruction-128", "SSIM, mean", 1), ("reconstruction-128", "SSIM, min", 1),
                                       ("rates-128", "VQ-VAE, codes", 1), ("rates-128", "WebP at .*, whole", 1)]),
        ("the same at", [("reconstruction-64", "SSIM, mean", 1), ("reconstruction-64", "SSIM, min", 1),
                         ("reconstruction-256", "SSIM, mean", 1), ("reconstruction-256", "SSIM, min", 1)]),
        ("[codes in use]", [("codes-128", "top", 1), ("codes-128", "bottom", 1), ("codes-128", "top", 3),
                            ("codes-128", "bottom", 3)]),
        ("[bits per code]", [("priors-128", "top", 1), ("priors-128", "bottom", 1), ("priors-128", "top", 4),
                             ("priors-128", "bottom", 4)]),
        ("[kernel MMD² of samples]", [(f"samples-128{name}", "kernel MMD², 32", column) for name, column in (
            ("", 1), ("-texture", 1), ("", 3), ("", 2), ("-texture", 2))]),
        ("AUROC", [("probe-128", "samples, real", 1), ("probe-128-texture", "samples, real", 1),
                   ("probe-128", "reconstructions, real", 1), ("probe-128-texture", "reconstructions, real", 1)]),
        ("[samples that are near", [("memorisation-128", "samples, pixels", 4)]),
        ("[lesions]", [("lesions-128", "all", 2), ("lesions-128", "all", 3)])], ids=lambda value: str(value)[:20])
    def test_figures_of_results_are_those_of_the_tables(self, row, cells):
        summary, rest = self.summary_and_rest(self.RESULTS)
        line = next(line for line in summary.splitlines() if line.startswith(f"| {row}"))
        place = 0
        for section, start, column in cells:
            table = rest.split(f"<!-- {section} -->")[1].split("<!-- end -->")[0]
            cell = re.search(rf"^\| {start}.*$", table, re.MULTILINE)[0].split(" | ")[column]
            figure = cell.split(" (")[0].strip("| ")
            place = line.find(figure, place)
            assert place >= 0, f"{figure} of {section} is not where it should be in: {line}"
            place += len(figure)

    @pytest.mark.parametrize("name", ["results", "benchmarks"])
    def test_every_figure_of_a_summary_stands_on_the_rest_of_the_page(self, name):
        summary, rest = self.summary_and_rest(ROOT / f"docs/{name}.md")
        figures = set(re.findall(r"(?<![\w.])\d+\.\d+(?:x|%|\b)", re.sub(r"\]\([^)]*\)", "]", summary)))
        assert len(figures) > 10
        assert {figure for figure in figures if figure not in rest} == set()


class TestCitation:
    @pytest.fixture
    def citation(self):
        return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))

    def test_it_has_what_the_format_requires(self, citation):
        assert citation["cff-version"] == "1.2.0"
        assert citation["type"] == "software"
        for key in ("title", "message"):
            assert len(citation[key]) > 20
        assert [set(author) for author in citation["authors"]] == [{"name"}]
        for reference in citation["references"]:
            assert {"type", "title", "authors"} <= set(reference)
            assert all({"name"} == set(author) or {"family-names", "given-names"} <= set(author)
                       for author in reference["authors"])

    def test_its_version_and_licence_are_the_project_s(self, citation):
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert re.search(r'^version = "(.+)"$', project, re.MULTILINE)[1] == citation["version"] == vqvae2.__version__
        assert re.search(r'^license = "(.+)"$', project, re.MULTILINE)[1] == citation["license"] == "MIT"
        licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
        assert licence.startswith("MIT License\n\nCopyright (c) ")
        assert citation["authors"][0]["name"].lower() in licence.lower()

    def test_the_newest_release_of_the_changelog_is_this_version_and_its_day(self, citation):
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings[:2] == ["Unreleased", f"{citation['version']} - {citation['date-released']}"]

    def test_it_names_the_papers_and_the_data_as_the_pages_do(self, citation):
        text = " ".join(HOW.read_text(encoding="utf-8").split()).lower()
        for reference in citation["references"]:
            assert reference.get("doi", reference.get("url")) in text, reference["title"]
            assert reference["type"] == "data" or reference["title"].lower() in text, reference["title"]
        results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
        assert {"ds002748", "1.0.5", "CC0"} <= set(re.findall(r"[\w.]+", results))
        assert {"10.18112/openneuro.ds002748.v1.0.5", "10.1155/2021/8846097"} <= {
            reference.get("doi") for reference in citation["references"]}

    def test_no_alias_is_in_it_which_some_readers_refuse(self):
        text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
        assert not re.search(r": [&*]\w", text)


def test_every_test_that_the_page_of_formats_names_is_there():
    named = re.findall(r"`(test_\w+)` in (tests/[\w/]+\.py)", (ROOT / "docs/formats.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    assert [name for name, path in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")] == []
