"""This machine -> precision and compilation: what the device says decides, and each choice has its reason."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from vqvae2.common import machine

CPU = torch.device("cpu")
AVX2 = "fpu sse2 fma avx2 f16c"


def cpu_with(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> None:
    """Pretend that /proc/cpuinfo has this line."""
    path, read = folder / "cpuinfo", machine.cpu_flags
    path.write_text(f"processor\t: 0\nmodel name\t: none\n{line}\n")
    monkeypatch.setattr(machine, "cpu_flags", lambda: read(path))


@pytest.mark.parametrize(("line", "unit"), [
    (f"flags\t\t: {AVX2} avx512f avx512_bf16 umip", "AVX512-BF16"),
    (f"flags\t\t: {AVX2} amx_bf16 amx_tile", "AMX-BF16"),
    (f"flags\t\t: {AVX2} amx_bf16 avx512_bf16", "AMX-BF16 and AVX512-BF16"),
    ("Features\t: fp asimd sve bf16 i8mm", "ARM BF16")])
def test_auto_takes_bf16_on_a_cpu_that_multiplies_it_and_says_what_with(monkeypatch, tmp_path, line, unit):
    cpu_with(monkeypatch, tmp_path, line)
    assert machine.choose_precision("auto", CPU) == (torch.bfloat16, f"this CPU has {unit}")


@pytest.mark.parametrize("line", [f"flags\t\t: {AVX2}", f"flags\t\t: {AVX2} avx512f avx512_vnni amx_int8 amx_tile",
                                  "Features\t: fp asimd crc32"])
def test_auto_takes_fp32_on_a_cpu_that_would_have_to_emulate_bf16(monkeypatch, tmp_path, line):
    cpu_with(monkeypatch, tmp_path, line)
    precision, why = machine.choose_precision("auto", CPU)
    assert precision == torch.float32
    assert why == "this CPU has none of AMX-BF16, ARM BF16, AVX512-BF16"


def test_a_system_that_does_not_say_what_its_cpu_can_do_gets_fp32(monkeypatch, tmp_path):
    read = machine.cpu_flags
    monkeypatch.setattr(machine, "cpu_flags", lambda: read(tmp_path / "none"))
    unknown = (torch.float32, "the system does not say whether this CPU has native bf16")
    assert machine.choose_precision("auto", CPU) == unknown
    (tmp_path / "none").write_text("bugs\t\t: avx512_bf16")
    assert machine.choose_precision("auto", CPU) == unknown


@pytest.mark.skipif(not hasattr(torch.cpu, "_is_avx512_bf16_supported"), reason="this torch cannot be asked")
def test_the_flags_say_what_torch_says_about_this_cpu():
    assert ("avx512_bf16" in machine.cpu_flags()) == torch.cpu._is_avx512_bf16_supported()


@pytest.mark.parametrize(("native", "precision", "why"), [
    (True, torch.bfloat16, "native on this GPU"), (False, torch.float32, "this GPU has no native bf16")])
def test_auto_asks_a_gpu_whether_bf16_is_native_not_whether_it_can_be_emulated(monkeypatch, native, precision, why):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert machine.choose_precision("auto", torch.device("cuda")) == (precision, why)


def test_what_is_asked_for_is_taken_whatever_the_cpu(monkeypatch, tmp_path):
    cpu_with(monkeypatch, tmp_path, f"flags\t\t: {AVX2}")
    assert machine.choose_precision("bf16", CPU) == (torch.bfloat16, "as asked")
    assert machine.choose_precision("fp32", CPU) == (torch.float32, "as asked")


def test_never_compiles_nothing_and_auto_does_not_try_on_a_cpu(monkeypatch):
    monkeypatch.setattr(machine, "why_not_compiled", lambda _: pytest.fail("nothing was to be compiled"))
    assert machine.compile_where_it_pays("never", CPU, [nn.ReLU()]) == (False, "as asked")
    assert machine.compile_where_it_pays("auto", CPU, [nn.ReLU()]) == (False, "does not pay on cpu")


def test_without_a_working_compiler_the_run_goes_on_and_says_why(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("\nCannot find a working triton installation.\nMore lines")

    monkeypatch.setattr(torch, "compile", broken)
    for asked, device in (("always", CPU), ("auto", torch.device("cuda"))):
        monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))  # there is no GPU to put them on
        assert machine.compile_where_it_pays(asked, device, [nn.ReLU()]) == (
            False, "torch.compile does not work here: RuntimeError: Cannot find a working triton installation.")


@pytest.mark.parametrize("compiler", ["c++", "no-such-compiler"])
def test_a_compiler_that_is_not_there_is_found_out_before_the_first_step(compiler, tmp_path):
    """A process of its own: what torch knows of the compiler it knows from its start."""
    code = ("import torch; from vqvae2.common import machine;"
            "parts = [torch.nn.ReLU()];"
            "print(*machine.compile_where_it_pays('always', torch.device('cpu'), parts), sep='|')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=500, check=True,
                          cwd=Path(__file__).parents[2],
                          env={**os.environ, "CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)})
    works, _, why = done.stdout.strip().splitlines()[-1].partition("|")
    if compiler == "c++":
        assert works == "True", why
        assert why == "as asked"
    else:
        assert works == "False"
        assert why.startswith("torch.compile does not work here: ")
        assert "no-such-compiler" in why or "compiler" in why.lower(), why


def test_a_model_without_parts_to_compile_does_not_say_that_it_was_compiled(monkeypatch):
    monkeypatch.setattr(machine, "why_not_compiled", lambda _: pytest.fail("nothing was to be compiled"))
    assert machine.compile_where_it_pays("always", CPU, []) == (False, "no part of this model is for it")


def test_each_part_is_compiled_as_one_piece_for_each_shape_and_keeps_its_names(monkeypatch):
    graphs = []

    def recorded(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append([node for node in graph.graph.nodes if node.op in ("call_function", "call_module")])
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: compiled(function, backend=recorded, **more))
    part = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3))
    names = list(part.state_dict())
    monkeypatch.setattr(machine, "why_not_compiled", lambda _: "")
    assert machine.compile_where_it_pays("always", CPU, [part]) == (True, "as asked")
    assert list(part.state_dict()) == names
    for batch in range(2, 14):
        part(torch.randn(batch, 1, 8, 8))
    assert len(graphs) == 12  # one piece for each shape, beyond torch's usual 8
    assert all(len(graph) == 3 for graph in graphs), graphs


KEEPING = """
import ctypes
from pathlib import Path
from vqvae2.common import machine

kept = machine.keep_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
middle = library.malloc(ctypes.c_size_t(32 * 2**20)) + 16 * 2**20
library.free(middle - 16 * 2**20)
regions = Path("/proc/self/smaps").read_text().split("VmFlags:")
flags = {line.split()[0]: after.splitlines()[0].split() for before, after in zip(regions, regions[1:])
         for line in before.splitlines() if "-" in line.split()[0]}
place = next(flags[place] for place in flags if int(place.split("-")[0], 16) <= middle < int(place.split("-")[1], 16))
print(kept, "hg" in place)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep memory")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no large pages")
def test_kept_memory_is_taken_from_addresses_that_get_large_pages():
    ended = subprocess.run([sys.executable, "-c", KEEPING], capture_output=True, text=True, timeout=120)
    assert ended.stdout == "True True\n", ended.stderr
