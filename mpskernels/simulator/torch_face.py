"""What torch's own Python side must be told of the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._C import DispatchKey

from mpskernels.simulator import _simulator, shader

_cpu_storage_new = torch.UntypedStorage.__new__


def _storage_new(cls: type, *args: Any, device: Any = None, **kwargs: Any) -> torch.UntypedStorage:
    """torch's build for Linux refuses `UntypedStorage(..., device="mps")`, which loading a file uses."""
    if device is None or torch.device(device).type != "mps":
        return _cpu_storage_new(cls, *args, **({} if device is None else {"device": device}), **kwargs)
    content = _cpu_storage_new(cls, *args, **kwargs)
    storage = torch.empty(content.nbytes(), dtype=torch.uint8, device="mps").untyped_storage()
    return storage if not args or isinstance(args[0], int) else storage.copy_(content)


def _attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """`scaled_dot_product_attention`, taken apart for tracing: torch's version asks a table that has no row for mps."""
    key = DispatchKey.AutogradMPS if args[0].device.type == "mps" else DispatchKey.CompositeImplicitAutograd
    return torch.ops.aten.scaled_dot_product_attention.default._op_dk(key, *args, **kwargs)


def install() -> None:
    """What makes the device itself complete."""
    torch.UntypedStorage.__new__ = staticmethod(_storage_new)
    attention = torch.ops.aten.scaled_dot_product_attention.default
    attention.py_impl(DispatchKey.CompositeImplicitAutograd)(_attention)


def _host_alias_storage(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    tensor = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    return _simulator.host_alias(tensor).untyped_storage()


def enable() -> None:
    """Makes torch say that it has the device: `torch.backends.mps`, `torch.mps.*` and `torch.accelerator` answer.

    Without it tensors on device `mps` work all the same, but code that asks first will not find it. Idempotent.
    """
    torch._C._has_mps = True
    bindings: dict[str, Callable[..., Any]] = {
        "_mps_compileShader": shader.compile_shader,
        "_mps_loadMetalllib": shader.load_metallib,
        "_mps_loadMetallibFromPath": shader.load_metallib,
        "_mps_get_name": lambda: _simulator.facts()["name"],
        "_mps_get_core_count": lambda: _simulator.facts()["gpu_cores"],
        "_mps_host_alias_storage": _host_alias_storage,
        "_mps_isCaptureEnabled": lambda: False,
        "_mps_isCapturing": lambda: False,
        "_mps_is_in_bad_fork": _simulator.in_bad_fork,
    }
    for name, function in bindings.items():
        setattr(torch._C, name, function)
    torch.mps._is_in_bad_fork = _simulator.in_bad_fork
    for query in vars(torch.backends.mps).values():
        if hasattr(query, "cache_clear"):
            query.cache_clear()
