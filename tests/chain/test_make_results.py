"""What the documentation shows is made again, on synthetic scans, and is what it was.

tests/stored/demo-64.json holds the figures; `PYTHONPATH=. python tests/chain/test_make_results.py` writes it
anew.
"""

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest
import same_process

from tools import make_results
from vqvae2.commands import demo_scans, publish
from vqvae2.common.errors import UserError
from vqvae2.evaluation import text

ROOT = Path(__file__).parents[2]
STORED = ROOT / "tests" / "stored" / "demo-64.json"
TOLERANCES = {"reconstruction": (0.004, 0.01), "codes": (0.02, 0.05), "priors": (0.03, 0.02)}
"""Absolute and relative: other CPUs round otherwise, and a code here and there is then another one."""
PAGE = ("# Results\n\n![Rows](pictures/strip-64.png)\n\n<!-- reconstruction-64 -->\nold\n<!-- end -->\n\nwords\n\n"
        "<!-- priors-64 -->\n<!-- end -->\n")


def make(folder, scans):
    """Run make_results on six synthetic subjects; return its folder of reports."""
    (folder / "docs").mkdir()
    (folder / "docs" / "results.md").write_text(PAGE)
    with same_process.chains():
        make_results.main(["--scans", str(scans), "--sizes", "64", "--quick", "--samples", "40", "--per-scan", "6",
                           "--out", str(folder / "out"), "--docs", str(folder / "docs")])
    return json.loads((folder / "out" / "64" / "report" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def made(demo_people, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder, make(folder, demo_people)


def leaves(tree, name=""):
    """Every value of nested dicts and lists, with its path as name."""
    if isinstance(tree, (dict, list)):
        for key, subtree in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(subtree, f"{name}/{key}")
    else:
        yield name, tree


@pytest.mark.parametrize("part", TOLERANCES)
def test_the_figures_made_from_the_published_weights_are_the_stored_ones(made, part):
    absolute, relative = TOLERANCES[part]
    stored, found = (dict(leaves(report[part])) for report in (json.loads(STORED.read_text()), made[1]))
    numbers = {name for name, value in stored.items() if isinstance(value, float) and "closest" not in name}
    assert stored.keys() == found.keys()
    assert len(numbers) >= 4
    for name in numbers:
        assert found[name] == pytest.approx(stored[name], abs=absolute, rel=relative), name


def test_the_figures_of_samples_are_all_there_and_those_that_few_samples_allow_are_the_stored_ones(made):
    """Another code near the beginning of a sample makes another sample, and of 40 one counts."""
    stored, found = json.loads(STORED.read_text())["samples"], made[1]["samples"]
    assert dict(leaves(stored)).keys() == dict(leaves(found)).keys()
    assert found["pairwise_ms_ssim"] == pytest.approx(stored["pairwise_ms_ssim"], abs=0.05)
    assert found["features"] == stored["features"]


def test_the_stored_figures_are_of_unseen_subjects(made):
    report = json.loads(STORED.read_text())
    for each in (report, made[1]):
        assert (each["schema"], each["split"], each["seen_in_training"]) == (1, "test", {"images": 0, "subjects": 0})
    assert report["subjects"] == made[1]["subjects"] >= 1


def test_tables_go_to_their_places_and_words_stay(made):
    page = (made[0] / "docs" / "results.md").read_text()
    tables = text.tables(made[1])
    for name in ("reconstruction", "priors"):
        table = text.markdown_table(*tables[name])
        assert f"<!-- {name}-64 -->\n{table}\n<!-- end -->" in page
    assert "\nwords\n" in page
    assert "\nold\n" not in page


def test_the_pictures_that_the_pages_show_are_copied_and_no_others(made):
    assert [path.name for path in (made[0] / "docs" / "pictures").iterdir()] == ["strip-64.png"]


def test_a_page_without_the_place_is_left_as_it_is():
    assert text.fill(PAGE, "codes-64", "table") == PAGE
    filled = text.fill(PAGE, "priors-64", r"a\1b")
    assert filled == PAGE.replace("<!-- priors-64 -->\n", "<!-- priors-64 -->\na\\1b\n")


def test_the_page_has_a_place_for_every_table_of_each_published_size():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for size in (64, 128, 256):
        for name in ("reconstruction", "reconstruction-texture", "codes", "samples", "samples-texture", "probe",
                     "probe-texture", "rates", *(("priors", "memorisation", "memorisation-texture", "lesions")
                                                 if size < 256 else ())):
            kind, _, texture = name.partition("-")
            start = page.index(f"<!-- {kind}-{size}{texture and '-texture'} -->\n| ")  # a table follows at once
            assert "<!-- end -->" in page[start:]


class TestASizeWithoutPriors:
    """Its VQ-VAE and texture decoder are judged alone: reconstructions of other unseen people stand for samples."""

    @pytest.fixture
    def commands(self, tmp_path, monkeypatch):
        for name in ("vqvae-128", "decoder-128"):
            shutil.copytree(ROOT / "pretrained" / name, tmp_path / name)
        monkeypatch.setattr(make_results, "PRETRAINED", tmp_path)
        settings = make_results.ResultsSettings(out=Path("out"))
        return [f"{step.name} {step.arguments}" for step in make_results.judging(128, settings, Path("scans"))]

    def test_no_command_asks_for_a_prior_or_for_samples_of_one(self, commands):
        assert len(commands) >= 6
        for command in commands:
            assert not re.search(r"--top|--bottom|--samples|--lesions|--temperature", command), command

    def test_reconstructions_of_validation_slices_are_judged_softly_and_with_texture(self, commands):
        for name, decoder in (("", ""), ("-texture", r" --decoder \S+/decoder-128")):
            models = rf"--vqvae \S+/vqvae-128{decoder}"
            made, judged = (next(number for number, command in enumerate(commands) if re.search(pattern, command))
                            for pattern in (
                rf"predict {models} out/128/given --out out/128/validate{name}$",
                rf"evaluate {models} .*--sampled out/128/validate{name}/reconstructions --probe.* "
                rf"--out out/128/report{name}$"))
            assert made < judged


def test_a_size_without_published_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"--sizes 7: expected a size of which pretrained.*, found 64, 128, 256"):
        make_results.main(["--scans", str(tmp_path), "--sizes", "7", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("name", [f"{what}-{size}" for size in (64, 128) for what in (
    "vqvae", "top", "bottom", "decoder")] + ["vqvae-256", "decoder-256"])
def test_each_published_card_has_data_split_settings_curve_figures_and_limits(name):
    card = (ROOT / "pretrained" / name / publish.CARD).read_text(encoding="utf-8")
    for part in ("## Data", "ds002748", "Split by subject: 2,040 images of 34 subjects", "## Settings", "## Training",
                 "(curves.png)", "## Figures", "0 of these images and 0 of these subjects were trained on",
                 publish.LIMITS):
        assert part in card, part


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        demo_scans.main(["--out", f"{folder}/scans", "--subjects", "6"])
        STORED.write_text(json.dumps(make(Path(folder), Path(folder) / "scans"), indent=1, ensure_ascii=False) + "\n",
                          encoding="utf-8")
