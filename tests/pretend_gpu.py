"""A GPU that is not there: tensors that say they are on it, and whose numbers the CPU works out.

A script so runs whole, on the way that a GPU takes (torch's own operators, where the CPU has compiled ones). An operation
on tensors of both devices fails, as on a real GPU. What is not tried: its kernels, its memory, and whether it is waited for.
"""

import contextlib
from unittest import mock

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from plumbing import processes

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")

COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)

# They choose a kernel by what the GPU can do, before any operator that could be caught.
ATTENTION = (F.scaled_dot_product_attention, torch._native_multi_head_attention)

SAID = {  # by functions of torch.cuda
    "reset_peak_memory_stats": None,
    "max_memory_allocated": 2**30,
    "get_device_name": "pretended",
    "get_device_capability": (9, 0),
    "synchronize": None,
}


class OnGPU(torch.Tensor):
    """A tensor "on the GPU"; `numbers` is the one on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers):
        with torch._C.DisableTorchFunction():
            shape = torch.empty_strided(numbers.size(), numbers.stride(), dtype=numbers.dtype, device="meta")
        options = {"dispatch_device": True, "device_for_backend_keys": GPU}
        made = torch.Tensor._make_subclass(cls, shape, False, **options)
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, operator, types, arguments=(), named=None):
        """The operator on the CPU; its results are on the GPU, unless it copies to the CPU."""
        if operator is torch.ops.prim.device.default:
            return GPU
        named, known = dict(named or {}), {}
        to_cpu = named.get("device") == CPU
        if "device" in named:
            named["device"] = CPU

        def taken(value):
            if isinstance(value, OnGPU):
                known[id(value.numbers)] = value
                return value.numbers
            if isinstance(value, torch.Tensor) and value.ndim and operator not in COPIES:
                raise RuntimeError(f"{operator}: a tensor {list(value.shape)} is on the CPU")
            return value

        def given(value):
            if to_cpu or not isinstance(value, torch.Tensor):
                return value
            return known[id(value)] if id(value) in known else OnGPU(value)

        return tree_map(given, operator(*tree_map(taken, arguments), **tree_map(taken, named)))


class _ByName(TorchFunctionMode):
    """Catches what names the GPU, for which torch would look for its driver."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        first = arguments[0] if arguments else None
        if function is torch.Tensor.to:
            device, dtype, *_ = torch._C._nn._parse_to(*arguments[1:], **named)
            if device is not None and device.type == "cuda":
                moved = first.to(dtype) if dtype else first
                return moved if isinstance(moved, OnGPU) else OnGPU(moved.detach().clone())
        elif function is torch.Tensor.tolist and isinstance(first, OnGPU):
            return first.numbers.tolist()
        elif function is torch.where:
            arguments = [torch.tensor(value) if isinstance(value, float) else value for value in arguments]
        elif function in ATTENTION:
            plain = tree_map(lambda x: x.numbers if isinstance(x, OnGPU) else x, (arguments, named))
            return tree_map(lambda x: x if x is None else OnGPU(x), function(*plain[0], **plain[1]))
        elif torch.device(named.get("device") or "cpu").type == "cuda":
            return OnGPU(function(*arguments, **{**named, "device": "cpu"}))
        return function(*arguments, **named)


@contextlib.contextmanager
def pretended():
    """Scripts take a GPU that is not there."""
    torch._C._ensureCUDADeviceGuardSet()  # as for fake tensors: without a driver, nothing switches between devices
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a moved module gets new parameters
    with contextlib.ExitStack() as patches:
        patches.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        patches.enter_context(mock.patch.object(processes, "own_device", return_value=str(GPU)))
        for name, value in SAID.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, return_value=value))
        patches.enter_context(_ByName())
        yield
