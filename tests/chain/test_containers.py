"""The container files cannot be built in a test: what they copy, install and show is held to what is there."""

import fnmatch
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from pasted import settings_of

from vqvae2.commands import COMMANDS
from vqvae2.settings.presets import tomllib

ROOT = Path(__file__).parents[2]
DOCKERFILE, DEFINITION = ROOT / "Dockerfile", ROOT / "launch/apptainer.def"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with what follows it; comments are left out."""
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"))
    return [tuple(line.split(maxsplit=1)) for line in re.sub(r"\\\n\s*", "", text).splitlines() if line]


def sections() -> dict[str, str]:
    """The header and the sections of the Apptainer definition."""
    name, *rest = re.split(r"(?m)^%(\w+)\n", DEFINITION.read_text(encoding="utf-8"))
    return {"header": name, **dict(zip(rest[::2], rest[1::2], strict=True))}


def commands_shown() -> list[list[str]]:
    """The words after the image's name of each `docker run` and `apptainer run` in the two files' manuals."""
    docker = re.sub(r"(?m)^# ?", "", DOCKERFILE.read_text(encoding="utf-8"))
    text = re.sub(r"\\\n\s*", "", docker + sections()["help"])
    lines = [shlex.split(line) for line in text.splitlines() if re.match(r"\s*(docker|apptainer) run ", line)]
    return [line[next(i for i, word in enumerate(line) if word in ("vqvae2", "vqvae2.sif")) + 1:] for line in lines]


def is_sent(name: str) -> bool:
    """Whether .dockerignore lets a file reach the build: the last line that fits decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and line[0] != "#" and any(fnmatch.fnmatch(part, pattern.removeprefix("**/")) for part in (
                name, *map(str, Path(name).parents), *(Path(name).parts if "**/" in pattern else ()))):
            sent = line[0] == "!"
    return sent


def test_what_is_copied_is_there_and_is_sent_and_nothing_else_is():
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    assert copied == {line.split()[0].removeprefix("./") for line in sections()["files"].splitlines() if line}
    assert [name for name in copied if not (ROOT / name).exists() or not is_sent(name)] == []
    assert {"pretrained", "vqvae2", PROJECT["readme"], *PROJECT["license-files"]} <= copied
    assert is_sent("pretrained/vqvae-128/model.safetensors")
    for name in (".git/HEAD", "results/oasis/brain/state.pt", "data/scans/sub-01.nii.gz", ".env",
                 "pretrained/vqvae-128/codes/train.npz", "vqvae2/models/__pycache__/x.pyc"):
        assert not is_sent(name), name


def test_the_image_runs_the_command_as_a_user_without_rights():
    last = dict(instructions())
    assert (last["ENTRYPOINT"], last["CMD"]) == ('["vqvae2"]', '["--help"]')
    assert int(last["USER"]) > 0
    assert "vqvae2" in PROJECT["scripts"]
    assert re.findall(r'^\s*exec (\w+) "\$@"$', sections()["runscript"], re.MULTILINE) == ["vqvae2"]
    assert (ROOT / "pretrained").name in sections()["files"]


def test_both_install_the_pinned_versions_of_the_same_extras_with_torch_of_the_cpu_unless_told():
    installs = [rest for word, rest in instructions() if word == "RUN"] + [sections()["post"]]
    assert all("--constraint constraints.txt" in install for install in installs)
    extras = {extras for install in installs for extras in re.findall(r"\.\[([\w,]+)\]", install)}
    assert extras == {"fast,dicom"}
    assert {"fast", "dicom"} <= PROJECT["optional-dependencies"].keys()
    own = dict(rest.split("=") for word, rest in instructions() if word == "ARG")
    of_apptainer = dict(line.split("=") for line in sections()["arguments"].split())
    assert own["TORCH_INDEX"] == of_apptainer["torch_index"] == "https://download.pytorch.org/whl/cpu"
    assert [install for install in installs if "$TORCH_INDEX" not in install
            and "{{ torch_index }}" not in install] == []


@pytest.mark.parametrize("name", ["post", "runscript", "test", "environment"])
def test_each_script_of_the_definition_is_valid_bash(name):
    checked = subprocess.run(["bash", "-n"], input=sections()[name], text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_definition_has_a_base_and_no_section_that_apptainer_does_not_know():
    assert dict(line.split(": ") for line in sections()["header"].split("\n") if line) == {
        "Bootstrap": "docker", "From": dict(instructions())["FROM"]}
    assert sections().keys() - {"header"} <= {"arguments", "help", "files", "post", "environment", "runscript", "test"}


def test_every_command_shown_is_one_that_vqvae2_takes(monkeypatch):
    shown = commands_shown()
    assert {words[0] for words in shown} >= {"run", "extract", "train-vqvae", "predict"}
    assert {words[0] for words in shown} <= COMMANDS.keys()
    for words in shown:
        settings_of(["vqvae2", *words], monkeypatch)
