"""A pretended GPU, so that tests without one can tell the tensors of two devices apart.

Inside `pretended_gpu` torch says that the machine has one GPU. A tensor on `cuda` is an `OnGpu`: its numbers lie on the CPU
and are computed there, but torch's rules for two devices hold. An operation on a tensor of the GPU and one of the CPU is an
error, and so are `.numpy()` of a tensor of the GPU and a generator of the CPU that is to draw numbers on the GPU. What
torch does differently on a GPU otherwise is not pretended: kernels, rounding, memory, autocast and speed. Passes backward are
not checked, because torch makes tensors of its own there.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from dap.backbones import load

CPU = torch.device("cpu")
KINDS = {"cuda": torch.device("cuda:0"), "mps": torch.device("mps:0")}
MEMORY = 80 * 10**9

_aten: Any = torch.ops.aten
_TWO_DEVICES = {
    _aten.copy_.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten.index_fill_.int_Scalar,
}
"""Operations that take tensors of two devices on a real GPU too: copies, and indices that lie on the CPU."""

_backward: list[None] = []
"""One entry for each pass backward that is under way."""
_gpus = [KINDS["cuda"]]
"""The last one is the pretended GPU."""


class OnGpu(Tensor):
    """A tensor on the pretended GPU."""

    held: Tensor
    """The same numbers on the CPU."""

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool | None = None) -> Any:
        if isinstance(held, OnGpu):
            held = held.held
        if _gpus[-1].type == "mps" and held.dtype in {torch.float64, torch.complex128}:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
            )
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        made = Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype, device=CPU, **layout)
        made.held = held
        # accelerate makes the parameters of a layer that comes to the GPU by the type of the parameter before.
        return made if requires_grad is None else torch.nn.Parameter(made, requires_grad)

    device = property(lambda self: _gpus[-1])
    is_cuda = property(lambda self: self.device.type == "cuda")
    is_mps = property(lambda self: self.device.type == "mps")
    is_cpu = property(lambda self: False)

    def __repr__(self, **how: Any) -> str:
        return f"OnGpu({self.held!r})"

    # Methods, not cases of the mode below: torch calls hooks inside of its operations, where no mode is on.

    def numpy(self, **how: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def new_tensor(self, data: Any, **how: Any) -> Tensor:
        return moved(self.held.new_tensor(data, **{**how, "device": CPU}), how.get("device", self.device))

    def to(self, *args: Any, **how: Any) -> Tensor:
        return moved(self, *args, **how)

    def cpu(self, **how: Any) -> Tensor:
        return moved(self, CPU)

    def cuda(self, device: Any = None, **how: Any) -> Tensor:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copy = OnGpu(self.held.detach().clone())
            parameter = isinstance(self, torch.nn.Parameter)
            grad = self.requires_grad
            memo[id(self)] = torch.nn.Parameter(copy, grad) if parameter else copy.requires_grad_(grad)
        return memo[id(self)]

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        alone = any(one.dim() for one in tensors if not isinstance(one, OnGpu))
        into_cpu = func is not _aten.copy_.default and not isinstance(args[0], OnGpu)
        if alone and not _backward and (func not in _TWO_DEVICES or into_cpu):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found {_gpus[-1]} and cpu! ({func})"
            )
        if kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({func})")
        found = func(*tree_map(_down, args), **tree_map(_down, kwargs))
        if not func._schema.returns:
            return None
        in_place = func._schema.is_mutable and func.__name__.partition(".")[0].endswith("_")
        return args[0] if in_place else tree_map(_up, found)


def _down(one: Any) -> Any:
    return one.held if isinstance(one, OnGpu) else one


def _up(one: Any) -> Any:
    return OnGpu(one) if isinstance(one, Tensor) and not isinstance(one, OnGpu) else one


class _Moved(torch.autograd.Function):
    """A copy of a tensor on the other device. Its gradient goes back the same way."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.up = not isinstance(tensor, OnGpu)
        return OnGpu(tensor.detach().clone()) if ctx.up else _down(tensor).detach().clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        return _down(grads[0]) if ctx.up else _up(grads[0])


def _named(one: Any) -> torch.device | None:
    """The device that an argument names, or None."""
    if isinstance(one, torch.device):
        return one
    return torch.device(one) if isinstance(one, str) and one.partition(":")[0] in {"cpu", *KINDS} else None


def moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What `tensor.to` returns for these arguments."""
    other = next((one for one in (*args, kwargs.get("other")) if isinstance(one, Tensor)), None)
    where = next((where for one in (*args, kwargs.get("device")) if (where := _named(one)) is not None), None)
    where = where if other is None else other.device
    on_gpu = isinstance(tensor, OnGpu)
    moves = where is not None and (where.type != "cpu") != on_gpu
    if (where is not None and where.type not in {"cpu", _gpus[-1].type}) or not (on_gpu or moves):
        return Tensor.to(tensor, *args, **kwargs)
    asked = (*args, kwargs.get("dtype"), None if other is None else other.dtype)
    dtype = next((one for one in asked if isinstance(one, torch.dtype)), tensor.dtype)
    found = _Moved.apply(tensor) if moves else tensor.clone() if kwargs.get("copy") else tensor
    found = found if dtype == found.dtype else found.type(dtype)
    form = kwargs.get("memory_format", torch.preserve_format)
    return found if form is torch.preserve_format else found.contiguous(memory_format=form)


class _OfTwoDevices(TorchFunctionMode):
    """Turns what is asked to lie on `cuda` into an `OnGpu`, and what is asked to lie on the CPU into a plain tensor."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name in {"backward", "grad"}:
            _backward.append(None)
            try:
                return func(*args, **kwargs)
            finally:
                _backward.pop()
        if first is not None and name in {"to", "cuda"}:
            return moved(first, *((KINDS["cuda"],) if name == "cuda" else args[1:]), **kwargs)
        where = _named(kwargs.get("device"))
        if where is None or where.type not in {"cpu", _gpus[-1].type}:
            return func(*args, **kwargs)
        if where.type != "cpu" and kwargs.get("generator") is not None:
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu' ({name})")
        found = func(*args, **{**kwargs, "device": CPU})
        if not isinstance(found, Tensor) or isinstance(found, OnGpu) == (where.type != "cpu"):
            return found
        return _Moved.apply(found.detach()).requires_grad_(found.requires_grad)


@contextlib.contextmanager
def pretended_gpu(kind: str = "cuda") -> Iterator[None]:
    """The machine has one GPU until the block ends. Only the thread that enters the block can use that GPU.

    Args:
        kind: "cuda", a GPU of 80 GB; or "mps", an Apple GPU, which has no float64.
    """
    properties = SimpleNamespace(total_memory=MEMORY, name="pretended", major=9, minor=0, multi_processor_count=1)
    answers: dict[str, Any] = dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True)
    answers |= {"device_count": 1, "current_device": 0, "is_current_stream_capturing": False}
    answers |= {
        "mem_get_info": (MEMORY, MEMORY),
        "memory_allocated": 0,
        "max_memory_allocated": 10**9,
        "memory_reserved": 0,
    }
    answers |= {"get_device_properties": properties, "get_device_name": "pretended", "get_device_capability": (9, 0)}
    answers |= dict.fromkeys(("synchronize", "empty_cache", "init", "reset_peak_memory_stats", "set_device"))
    answers |= dict.fromkeys(("set_per_process_memory_fraction", "manual_seed", "manual_seed_all", "set_rng_state"))
    told: dict[str, Callable[..., Any]] = {name: lambda *_, value=value: value for name, value in answers.items()}
    told |= {"device": lambda *_: contextlib.nullcontext(), "get_rng_state": lambda *_: torch.get_rng_state()}
    stream = SimpleNamespace(is_capturing=lambda: False)
    inference, future = torch.autograd.grad_mode.inference_mode, torch.__future__

    def enter(self: Any) -> None:  # tensors of inference mode cannot be wrapped
        self.plain = torch.no_grad()
        self.plain.__enter__()

    with contextlib.ExitStack() as stack:
        _gpus.append(KINDS[kind])
        stack.callback(_gpus.pop)
        for name, answer in told.items() if kind == "cuda" else ():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        if kind == "mps":
            stack.enter_context(mock.patch.object(torch.backends.mps, "is_available", lambda: True))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", lambda *_: stream))
        stack.enter_context(mock.patch.object(inference, "__enter__", enter))
        stack.enter_context(mock.patch.object(inference, "__exit__", lambda self, *why: self.plain.__exit__(*why)))
        # A module's weights keep their identity when the module moves, as optimisers need.
        stack.callback(future.set_swap_module_params_on_conversion, future.get_swap_module_params_on_conversion())
        future.set_swap_module_params_on_conversion(True)
        stack.enter_context(warnings.catch_warnings())
        # Norms of a tensor subclass go by an older operation of torch.
        warnings.filterwarnings("ignore", message=".*frobenius_norm is deprecated")
        stack.enter_context(_OfTwoDevices())
        yield


def used_on_gpu(folder: Path, kind: str = "cuda", offload: str = "none") -> None:
    """Load the backbone of a folder onto the pretended GPU, and ask it for all that a method asks for."""
    with pretended_gpu(kind):
        backbone = load(str(folder), device=kind, offload=offload)
        assert backbone.device.type == kind
        x = torch.randn(2, *backbone.latent_shape).to(backbone.device)
        names = backbone.class_names[:2] if backbone.class_names else ("red", "green")
        condition, t = backbone.condition(names), 600
        layer = backbone.layers[len(backbone.layers) // 2]
        leaf = x.clone().requires_grad_()
        for way in ("features", "denoiser"):
            found = backbone.predict(leaf, t, condition, layer=layer, grad_through=way)
            (gradient,) = torch.autograd.grad(found.features.square().mean(), leaf)
            assert {found.eps.device, found.features.device, gradient.device} == {KINDS[kind]}
        assert {backbone.predict(x, t, backbone.null(2)).eps.device, backbone.tap(x, t, condition, layer).device} == {
            KINDS[kind]
        }
        del found  # its graph must not hold weights that are about to leave the GPU
        images = backbone.decode(x)
        assert backbone.encode(images.cpu()).device == KINDS[kind] and backbone.encode(images).shape == x.shape
