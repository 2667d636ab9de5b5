"""The import rule of the house style, section 1: files stand in the order in which data flows."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = {  # a module imports only from lower rows; in row 0, only from the lines above it
    "errors": 0, "command_line": 0, "spelling": 0, "environment": 0, "presets": 0, "config": 0,
    "extract_config": 0, "sample_config": 0, "evaluate_config": 0, "predict_config": 0, "feature_config": 0,
    "tune_config": 0,
    "identities": 0, "inflate": 0,
    "random_numbers": 0, "nearest": 0, "machine": 0,
    "distributed": 0, "averaging": 0,
    "headers": 1, "journal": 1, "scans": 1, "covariates": 1, "quantizer": 1, "masked_conv": 1, "metrics": 1,
    "augmentation": 1, "conditions": 1, "checkpoints": 1, "curve_plots": 1, "picture_files": 1,
    "pixel_cache": 2, "run_folder": 2, "run_log": 2, "volumes": 2, "autoencoder": 2, "prior": 2, "plots": 2,
    "context_model": 2, "layouts": 2, "lesions": 2, "losses": 2, "chain": 2,
    "brain": 3, "images": 3, "publishing": 3, "cached": 3, "likelihood": 3, "maps_plots": 3,
    "slices": 4, "codes": 4, "features": 4, "leaks": 4, "prior_figures": 4, "map_files": 4, "rates": 4,
    "translate": 4,
    "memorisation": 5, "probe": 5, "sample_figures": 5, "tuning": 5, "tuning_study": 6,
    "keras_layout": 5, "samples": 5, "inpainting": 5, "anomalies": 5, "sample_folder": 5, "predict_inputs": 5,
    "report_text": 6, "sample_report": 6, "reports": 7, "model_cards": 7, "trainer": 6, "drawing": 6, "prediction": 6,
    "extraction": 6,
    "extract_slices": 8, "train_vqvae": 8, "train_pixel_cnn": 8, "train_features": 8, "sample": 8,
    "evaluate": 8, "predict": 8,
    "make_demo_scans": 8, "demo": 8, "make_results": 8,
    "tune": 9,
}
TRAINER_IMPORTS = {"errors", "config", "random_numbers", "machine", "distributed", "averaging", "metrics",
                   "checkpoints",
                   "run_folder", "run_log"}
IMPORTED_IN_FUNCTIONS = {"make_demo_scans": {"nilearn"}}  # an optional package, asked for when it is needed
LONGEST = 399
FILES = sorted(path for folder in (ROOT, ROOT / "vqvae2") for path in folder.glob("*.py") if path.stem != "__init__")
every_module = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def imports_in(tree):
    """Every imported name with its module in front, such as vqvae2.common.errors.UserError or torch.nn."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = "vqvae2." * (node.level > 0) + (f"{node.module}." if node.module else "")
            yield from (package + name.name for name in node.names)


def own_modules(source):
    """Modules of this project that a source text imports, by stem."""
    names = [name.split(".") for name in imports_in(ast.parse(source))]
    return {parts[1] if parts[0] == "vqvae2" and len(parts) > 1 else parts[0] for parts in names
            if parts[0] == "vqvae2" or (parts[0] in ROWS and (ROOT / f"{parts[0]}.py").exists())}


def may_import(module, other):
    if ROWS[module] == ROWS[other] == 0:
        return list(ROWS).index(other) < list(ROWS).index(module)
    return ROWS[other] < ROWS[module]


def imports_of_functions(source):
    functions = [node for node in ast.walk(ast.parse(source))
                 if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]
    return {name.split(".")[0] for function in functions for name in imports_in(function)}


def names_torch_distributed(source):
    tree = ast.parse(source)
    attributes = any(isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
                     for node in ast.walk(tree))
    return attributes or any(f"{name}.".startswith("torch.distributed.") for name in imports_in(tree))


@every_module
def test_a_module_imports_only_from_lower_rows(path):
    assert path.stem in ROWS, f"{path.name} has no row: add it to ROWS in {Path(__file__).name} and to the house style"
    unknown = own_modules(path.read_text()) - set(ROWS) - {"__version__"}
    assert not unknown, f"{path.name} imports {unknown}, which have no row: import the package's modules by name"
    others = own_modules(path.read_text()) - {"__version__"}
    forbidden = {other for other in others if not may_import(path.stem, other)}
    assert not forbidden, f"{path.name} (row {ROWS[path.stem]}) imports {forbidden} from its own row or a higher one"


@every_module
def test_no_import_hides_in_a_function(path):
    hidden = imports_of_functions(path.read_text()) - IMPORTED_IN_FUNCTIONS.get(path.stem, set())
    assert not hidden, f"{path.name} imports {hidden} inside a function: move it to the top"


@every_module
def test_a_module_is_short_and_opens_with_what_goes_in_and_comes_out(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST, f"{path.name} has {len(text.splitlines())} lines: split it"
    if path.parent.name == "vqvae2":
        opening = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
        assert "->" in opening, f"{path.name} opens with {opening!r}: say In -> out first"


@every_module
def test_only_distributed_names_torch_distributed(path):
    assert path.stem == "distributed" or not names_torch_distributed(path.read_text()), path.name


def test_the_trainer_knows_no_model():
    path = ROOT / "trainer.py"
    if not path.exists():
        pytest.skip("trainer.py is not written yet")
    assert own_modules(path.read_text()) - {"__version__"} <= TRAINER_IMPORTS


@pytest.mark.parametrize(("source", "expected"), [
    ("from vqvae2.common.errors import UserError", {"errors"}), ("from vqvae2 import metrics, plots", {"metrics", "plots"}),
    ("import vqvae2.images.dataset as images", {"images"}), ("from .codes import load", {"codes"}),
    ("from . import prior", {"prior"}), ("import torch, vqvae2", {"vqvae2"}), ("import os", set()),
    ("def f():\n    from vqvae2 import codes", {"codes"})])
def test_the_rule_sees_every_way_to_import(source, expected):
    assert own_modules(source) == expected


def test_the_rule_tells_right_from_wrong():
    assert may_import("config", "errors")
    assert not may_import("errors", "config")
    assert may_import("plots", "metrics")
    assert not may_import("metrics", "checkpoints")
    assert imports_of_functions("import os\ndef f():\n    import json.decoder") == {"json"}
    for source in ("import torch.distributed as d", "from torch import distributed", "torch.distributed.get_rank()",
                   "from torch.distributed import get_rank"):
        assert names_torch_distributed(source), source
    assert not names_torch_distributed('"""python -m torch.distributed.run"""\nfrom vqvae2 import distributed')
