"""A device that is not the CPU, on machines that have no other: it shows what is left behind, and who waits.

A tensor on such a device is a shell around a tensor of the CPU, which computes: trainings are real, and what they make
can be compared. As on a GPU an operation of tensors of both devices raises (single numbers aside), and while `Waits`
are counted every operation is noted that would make the host wait for the device.

ELSEWHERE can do all that the CPU can, also gradients. CUDA is for networks without gradients: there it is the code for
GPUs that runs, with autocast to bf16. torch cannot be rid of either, nor of what it decided at its first backward pass:
`open_elsewhere` and `open_cuda` are for a process of their own, such as of `run_on_ranks`.
"""

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME, CUDA = "elsewhere", torch.device("cuda", 0)
PROJECT = str(Path(__file__).parents[2] / "vqvae2")
aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_}
BY_INDEX = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
WAITING = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.bincount,
           aten.histc, aten._unique, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten._linalg_eigh,
           aten._linalg_svd}
"""Operations whose result, or its size, the host must know before it goes on."""
kept: list[object] = []
"""What torch uses of this module without holding it."""


def why_not() -> str:
    """Return why this torch has no such devices; nothing if it has."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return f"torch {torch.__version__} has no backends written in Python; 2.13 has"
    if torch.backends.cuda.is_built() or sys.platform != "linux":
        return "this needs a torch for Linux that was built without CUDA"
    return ""


class Wait(NamedTuple):
    """The host waits: in which part of the work, for which operation, and the project's line that asks for it."""

    part: str
    operation: str
    line: str


class Shell(torch.Tensor):
    """A tensor on another device; `inner` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> "Shell":
        """Return a shell that looks like `inner`, but for its device."""
        shell = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=device)
        shell.inner = inner
        return shell

    def __repr__(self, **_: object) -> str:
        return f"on {self.device}: {self.inner}"

    def __reduce_ex__(self, protocol: int) -> tuple:
        return self.inner.__reduce_ex__(protocol)  # states on disk are those of the CPU

    def tolist(self) -> list:
        """Return the numbers: torch does not do it for subclasses."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, operation: Callable, *_: object) -> None:
        raise AssertionError(f"{operation}: expected somebody who counts the waits, found nobody. Use Waits.")


class Waits(TorchDispatchMode):
    """In this context tensors can be on `device`; `found` are the waits so far, `times` how often a part was done."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.part = device, ""
        self.found: list[Wait] = []
        self.times: Counter[str] = Counter()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to keep torch.compile away from this class would cost a process seconds

    @contextmanager
    def during(self, part: str) -> Iterator[list[Wait]]:
        """Note waits as of `part`, and yield them."""
        before, self.part, first = self.part, part, len(self.found)
        self.times[part] += 1
        found: list[Wait] = []
        try:
            yield found
        finally:
            self.part = before
            found += self.found[first:]

    def watch(self, owner: object, function: str, part: str) -> None:
        """Note waits in a function of `owner`, a class or a module, as of `part`, from now on."""
        original = getattr(owner, function)

        def watched(*arguments: object, **more: object) -> object:
            with self.during(part):
                return original(*arguments, **more)
        setattr(owner, function, watched)

    def __torch_dispatch__(self, operation: Callable, types: object, args: tuple = (), kwargs: dict | None = None,
                           ) -> object:
        packet, kwargs = operation.overloadpacket, kwargs or {}
        if packet == aten.is_pinned:
            return getattr(args[0], "pinned", False)
        if packet == aten._pin_memory:
            copy = args[0].clone()
            copy.pinned = True
            return copy
        if packet == aten._fused_sdp_choice:
            return 0  # attention by plain operations: each kind of device has its own fused one
        given = [value for value in flat([*args, *kwargs.values()]) if isinstance(value, torch.Tensor)]
        shells = {id(shell.inner): shell for shell in given if isinstance(shell, Shell)}
        if why := why_waiting(packet, args, kwargs, bool(shells)):
            self.found.append(Wait(self.part, why, line_of_project()))
        left = [tensor for tensor in given if tensor.dim() and not isinstance(tensor, Shell)]
        if shells and left and packet not in COPIES:
            raise RuntimeError(f"{operation}: a tensor of shape {list(left[0].shape)} was left on the CPU")
        is_shell, more = bool(shells), mapped(kwargs, opened)
        if packet == aten.copy_:
            is_shell = isinstance(args[0], Shell)
        elif kwargs.get("device") is not None:
            is_shell = torch.device(kwargs["device"]).type == self.device.type
            more["device"] = torch.device("cpu")
        made = operation(*mapped(args, opened), **more)
        # What was changed in place stays the same tensor.
        return mapped(made, lambda inner: shells[id(inner)] if id(inner) in shells else Shell(inner, self.device)
                      ) if is_shell else made


def why_waiting(packet: torch._ops.OpOverloadPacket, args: tuple, kwargs: dict, has_shells: bool) -> str:
    """Return what the host waits for in an operation; nothing if it goes on at once.

    A copy to the device is followed by nobody if it comes from pinned memory and is asked not to block; any other way
    of copying waits until the device has done all that it was told before.
    """
    if packet in COPIES:
        source, to = args[0], torch.device(kwargs.get("device") or args[0].device)
        non_blocking = kwargs.get("non_blocking")
        if packet == aten.copy_:
            source, to, non_blocking = args[1], args[0].device, non_blocking or args[2:] == (True,)
        goes_on = non_blocking and getattr(source, "pinned", False)
        return "" if goes_on or source.device.type == to.type else f"copy from {source.device.type} to {to.type}"
    if not has_shells:
        return ""
    if packet in BY_INDEX:
        masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        return f"{packet} by a mask" if masks else ""
    counts = packet == aten.repeat_interleave and not kwargs.get("output_size")
    return str(packet) if counts or packet in WAITING else ""


def open_elsewhere() -> torch.device:
    """Return the device, which this process has from now on."""
    class Module(backend_registration._DummyBackendModule):
        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.bfloat16]

    kept[:] = Module(), backend_registration._DummyPrivateUse1Hook(), backend_registration._DummyDeviceGuard()
    backend_registration._setup_privateuseone_for_python_backend(NAME, *kept)
    _let_shells_be_seen()
    return torch.device(NAME, 0)


def open_cuda() -> torch.device:
    """Return CUDA, which this process has from now on: for networks without gradients."""
    # Without CUDA torch has nobody who switches between such devices. The one for the device `meta` does nothing,
    # which is right here: in torch's table of them it is entered for CUDA too (numbers as in c10/core/DeviceType.h).
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 15).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[1] = guards[14]
    torch.cuda._lazy_init = lambda: None
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.is_bf16_supported = lambda **_: True
    _let_shells_be_seen()
    return CUDA


def _let_shells_be_seen() -> None:
    # A tensor of given numbers is made on the CPU and copied, where the copy can be noted.
    torch._C._set_only_lift_cpu_tensors(True)
    # Weights become new parameters; put into the old ones they would lose their shell.
    torch.__future__.set_overwrite_module_params_on_conversion(True)


def opened(tensor: torch.Tensor) -> torch.Tensor:
    """Return what computes for a tensor."""
    return tensor.inner if isinstance(tensor, Shell) else tensor


def mapped(value: object, change: Callable[[torch.Tensor], torch.Tensor]) -> object:
    """Return `value` with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([mapped(part, change) for part in value])
    return {name: mapped(part, change) for name, part in value.items()} if isinstance(value, dict) else value


def flat(values: Iterable) -> Iterator:
    """Yield values, and those in lists and tuples among them."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from flat(value)
        else:
            yield value


def line_of_project() -> str:
    """Return the line of this project that is running: the innermost."""
    frame = sys._getframe()
    while frame and not frame.f_code.co_filename.startswith(PROJECT):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}" if frame else "the test"
