"""evaluate.ipynb runs from start to end on a trained run, shows every figure, and is shipped empty."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "evaluate.ipynb"
FIGURES = ("strip", "reconstructions", "worst", "best", "code_images_top", "code_images_bottom", "code_histogram",
           "ssim_histogram", "rates", "likelihood", "samples", "closest", "curves", "curves_top", "curves_bottom")


def execute(notebook, folder, **environment):
    """Run the notebook with these variables set, and without those of the machine; return the finished process."""
    ours = {name: value for name, value in os.environ.items()
            if name not in ("VQVAE", "TOP", "BOTTOM", "DATA", "OUT", "OASIS_PATH", "SLICES_PATH")}
    ours |= {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", str(notebook), "--output-dir",
               str(folder)]
    return subprocess.run(command, env=ours, capture_output=True, text=True, check=False)


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def executed(tiny_run, tmp_path_factory):
    """The executed notebook's code cells, and the folder of its report."""
    folder = tmp_path_factory.mktemp("notebook")
    done = execute(NOTEBOOK, folder, VQVAE=tiny_run.vqvae, TOP=tiny_run.top, BOTTOM=tiny_run.bottom,
                   DATA=tiny_run.data, OUT=folder / "report")
    assert done.returncode == 0, done.stderr[-3000:]
    return cells(folder / NOTEBOOK.name, "code"), folder / "report"


def test_the_notebook_runs_without_errors_and_without_noise(executed):
    outputs = [output for cell in executed[0] for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result"}


def test_the_notebook_shows_every_figure(executed):
    code, folder = executed
    shown = [output for cell in code for output in cell["outputs"] if "image/png" in output["data"]]
    assert len(shown) == len(FIGURES)
    for name in FIGURES:
        assert (folder / f"{name}.png").is_file(), name


def test_the_notebooks_figures_are_those_of_metrics_json(executed):
    code, folder = executed
    report = json.loads((folder / "metrics.json").read_text())
    tables = "\n".join("".join(output["data"]["text/markdown"]) for cell in code for output in cell["outputs"]
                       if "text/markdown" in output["data"])
    ssim = report["reconstruction"]["full"]["ssim"]
    assert f"| SSIM, full picture | {ssim['mean']:.4f} (95 % interval {ssim['ci_low']:.4f}" in tables
    for level in ("top", "bottom"):
        prior = report["priors"][level]
        assert f"| {level} | {prior['bits_per_code']:.3f} ({prior['ci_low']:.3f} to " in tables
    assert f"| {report['samples']['pairwise_ms_ssim']:.3f} |" in tables
    assert "does the probe count?" in tables


def test_without_a_run_the_notebook_opens_the_published_weights_on_demo_slices():
    first = "".join(cells(NOTEBOOK, "code")[0]["source"])
    assert 'f"pretrained/{name}-128" for name in ("vqvae", "top", "bottom")' in first
    assert 'chain.demo_slices(Path("demo"), size=128)' in first
    for name in ("vqvae", "top", "bottom"):
        assert (NOTEBOOK.parent / "pretrained" / f"{name}-128" / "model.safetensors").is_file()


def test_a_run_that_is_not_there_is_said_in_one_line(tmp_path):
    done = execute(NOTEBOOK, tmp_path, VQVAE="no-such-run")
    assert done.returncode != 0
    assert "--vqvae no-such-run: expected a folder with model.safetensors, or a name" in done.stderr


def test_the_notebook_is_shipped_without_outputs_and_without_paths_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells(NOTEBOOK, "code"))
    assert not re.search(r"/(home|root|Users|work|tmp)/|[A-Z]:\\\\", text)
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"


def test_each_figure_has_a_title_and_a_caption():
    all_cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for before, cell in itertools.pairwise(all_cells):
        source = "".join(cell["source"])
        if source.startswith(("show(", "table(")):
            title, *caption = "".join(before["source"]).splitlines()
            assert title.startswith("## ")
            assert len(" ".join(caption).split()) > 10, title


def test_the_notebook_computes_nothing_of_its_own():
    text = "\n".join("".join(cell["source"]) for cell in cells(NOTEBOOK, "code"))
    imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE))
    assert imported == {"os", "pathlib", "IPython", "vqvae2"}
    assert text.count("reports.evaluate(") == 1
