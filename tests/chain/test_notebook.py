"""evaluate.ipynb runs from start to end on a trained run, shows every figure, and is shipped empty."""

import ast
import base64
import csv
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae2 import api

NOTEBOOK = Path(__file__).parents[2] / "evaluate.ipynb"
FIGURES = ("strip", "reconstructions", "worst", "best", "code_images_top", "code_images_bottom", "code_histogram",
           "ssim_histogram", "rates", "likelihood", "samples", "closest", "curves", "curves_top", "curves_bottom")
OWN_PICTURES = ("image_picture(vqvae, images)", 'pictures["top"]', 'pictures.get("bottom")',
                "decode(vqvae, codes))", "decode(vqvae, exchanged))")
"""The ends of the cells that show a picture of their own, by public functions of vqvae2."""

FEW_STEPS = r'''"from vqvae2.evaluation import probe\n", "probe.STEPS = 3\n", '''
"""Lines of a cell, as the file has them."""


def execute(notebook, folder, **environment):
    """Run the notebook with these variables set, and without those of the machine; return the finished process."""
    ours = {name: value for name, value in os.environ.items()
            if name not in ("VQVAE", "TOP", "BOTTOM", "DECODER", "DATA", "OUT", "OASIS_PATH", "SLICES_PATH")}
    ours |= {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in environment.items()}
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", str(notebook), "--output-dir",
               str(folder)]
    return subprocess.run(command, env=ours, capture_output=True, text=True, check=False)


def source_of(cell):
    return "".join(cell["source"])


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@pytest.fixture(scope="module")
def executed(tiny_run, tmp_path_factory):
    """The executed notebook's code cells, and the folder of its report; its probe is trained for a few steps only."""
    folder = tmp_path_factory.mktemp("notebook")
    before, call, after = NOTEBOOK.read_text(encoding="utf-8").partition('"report = reports.evaluate(settings)')
    assert call
    (folder / "given.ipynb").write_text(f"{before}{FEW_STEPS}{call}{after}", encoding="utf-8")
    done = execute(folder / "given.ipynb", folder / "made", VQVAE=tiny_run.vqvae, TOP=tiny_run.top,
                   BOTTOM=tiny_run.bottom, DATA=tiny_run.data, OUT=folder / "report")
    assert done.returncode == 0, done.stderr[-3000:]
    return cells(folder / "made" / "given.ipynb", "code"), folder / "report"


def test_the_notebook_runs_without_errors_and_without_noise(executed):
    outputs = [output for cell in executed[0] for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result"}


def test_the_notebook_shows_every_figure(executed):
    code, folder = executed
    shown = [cell for cell in code if any("image/png" in output["data"] for output in cell["outputs"])]
    assert len([cell for cell in shown if source_of(cell).startswith("show(")]) == len(FIGURES)
    for name in FIGURES:
        assert (folder / f"{name}.png").is_file(), name


def own_cells(code):
    """The cells that call public functions of vqvae2, from the cell that loads the model on."""
    first = next(number for number, cell in enumerate(code) if "load_vqvae(" in source_of(cell))
    return [cell for cell in code[first:] if not source_of(cell).startswith(("show(", "table("))]


def picture_in(cell):
    (output,) = cell["outputs"]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))))


def test_codes_embeddings_and_images_are_made_by_functions_that_a_user_can_call(executed, tiny_run):
    """Nine test images, of which eight are shown; bottom codes 8 x 8, top 4 x 4; embeddings of 8 numbers."""
    shapes, vectors, *pictured = own_cells(executed[0])
    assert literal(shapes) == {"top": (8, 4, 4), "bottom": (8, 8, 8)}
    assert literal(vectors) == {"top": (8, 8, 4, 4), "bottom": (8, 8, 8, 8)}
    for cell, end in zip(pictured, OWN_PICTURES, strict=True):
        assert end in source_of(cell)
    names = [row["image"] for row in csv.DictReader((tiny_run.data / "manifest.csv").open()) if row["split"] == "test"]
    images, top, bottom, made, exchanged = map(picture_in, pictured)
    np.testing.assert_array_equal(images[::4, :128:4], np.asarray(Image.open(tiny_run.data / names[0])))
    vqvae = api.load_vqvae(tiny_run.vqvae, "cpu")
    codes = api.encode(vqvae, [tiny_run.data / name for name in names[:8]])
    for level, shown in (("top", top), ("bottom", bottom)):
        np.testing.assert_array_equal(shown, np.asarray(api.code_pictures(vqvae, codes)[level]))
    for shown, given in ((made, codes), (exchanged, {**codes, "top": codes["top"].roll(1, 0)})):
        np.testing.assert_array_equal(shown, np.asarray(api.image_picture(vqvae, api.decode(vqvae, given))))
    assert made.shape == images.shape
    assert (made != exchanged).any()


def literal(cell):
    (output,) = cell["outputs"]
    return ast.literal_eval("".join(output["data"]["text/plain"]))


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
    assert 'steps.demo_slices(Path("demo"), size=128)' in first
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
