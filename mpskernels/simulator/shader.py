"""Metal kernels as Python callables, with the calling convention of `torch.mps.compile_shader`."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mpskernels.simulator import _simulator, compiler
from mpskernels.simulator.compiler import clang

Scalar = bool | int | float
Argument = Tensor | Scalar | Sequence[Scalar] | None

_CASTS = {
    "bool": torch.bool,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.uint16,
    "int32": torch.int32,
    "uint32": torch.uint32,
    "int64": torch.int64,
    "uint64": torch.uint64,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}


class MissingKernelError(AttributeError, RuntimeError):
    """A library has no kernel of that name. torch raises RuntimeError here, Python's protocols want AttributeError."""


class MetalKernel:
    """One kernel of a library. Calling it encodes one dispatch; `torch.mps.synchronize()` waits for the result."""

    def __init__(self, name: str, kernel: _simulator.Kernel) -> None:
        self._name = name
        self._kernel = kernel

    def __repr__(self) -> str:
        return f"<Metal kernel {self._name}>"

    @property
    def max_threads_per_threadgroup(self) -> int:
        """The largest number of threads that one threadgroup of this kernel may have."""
        return self._kernel.max_threads_per_threadgroup

    @property
    def thread_execution_width(self) -> int:
        """Threads of a simdgroup."""
        return self._kernel.thread_execution_width

    @property
    def static_thread_group_memory_length(self) -> int:
        """Bytes of threadgroup memory that the kernel declares."""
        return self._kernel.static_thread_group_memory_length

    def __call__(
        self,
        *args: Argument,
        threads: int | Sequence[int] | None = None,
        group_size: int | Sequence[int] | None = None,
        arg_casts: str | Mapping[int, str] | None = None,
    ) -> None:
        """Encodes one dispatch.

        Args:
            args: what is bound to buffers 0, 1, ...: a tensor on `mps` (its storage from its first element on), a
                number or a list of numbers (copied; int as 64-bit, float as 32-bit), or None, which binds nothing.
            threads: the size of the grid, one to three numbers. Default: the elements of the first tensor.
            group_size: threads per threadgroup, as many numbers. Default: all that the kernel allows, along the
                first axis.
            arg_casts: the type of numbers in memory, such as "int32" or "fp16"; or a dict from argument index to type.

        Raises:
            RuntimeError: an argument of the wrong kind or on the wrong device, or anything Metal's validation refuses.
            ValueError: too many threads per threadgroup.
        """
        bound = [self._bind(index, value, arg_casts) for index, value in enumerate(args)]
        if threads is None:
            threads = next((value.numel() for value in args if isinstance(value, Tensor)), None)
            if threads is None:
                raise RuntimeError(f"{self._name}: without a tensor argument, threads=... must be given")
        grid = self._size("threads", threads)
        limit = self.max_threads_per_threadgroup
        if group_size is None:
            group = [min(limit, grid[0]) if len(grid) == 1 else limit] + [1] * (len(grid) - 1)
        else:
            group = self._size("group_size", group_size)
            if len(group) != len(grid):
                raise RuntimeError(f"{self._name}: threads has {len(grid)} dimensions and group_size {len(group)}")
            if math.prod(group) > limit:
                raise ValueError(f"{self._name}: group_size {tuple(group)} exceeds the limit of {limit} threads")
        if 0 in grid:
            return
        pad = [1] * (3 - len(grid))
        self._kernel.launch(bound, [*grid, *pad], [*group, *pad])

    def _size(self, what: str, size: int | Sequence[int]) -> list[int]:
        numbers = list(size) if isinstance(size, Sequence) else [size]
        if not 1 <= len(numbers) <= 3 or any(not isinstance(n, int) or n < 0 for n in numbers):
            raise RuntimeError(f"{self._name}: {what} must be one to three non-negative integers, got {size!r}")
        return numbers

    def _bind(self, index: int, value: Argument, casts: str | Mapping[int, str] | None) -> Tensor | bytes | None:
        if value is None:
            return None
        where = f"{self._name}: argument {index}"
        if isinstance(value, Tensor):
            if value.device.type != "mps":
                raise RuntimeError(f"{where}: expected a tensor on device mps, got {value.device}")
            return value
        numbers = value if isinstance(value, (list, tuple)) else [value]
        if not numbers or not all(isinstance(number, (bool, int, float)) for number in numbers):
            raise RuntimeError(f"{where}: expected a tensor, a number or a list of numbers, got {value!r}")
        cast = casts if isinstance(casts, (str, type(None))) else casts.get(index)
        if cast is None:
            return _pack(numbers, where)
        if cast not in _CASTS:
            raise RuntimeError(f"{where}: arg_casts names no type: {cast!r}; allowed: {', '.join(_CASTS)}")
        try:
            return bytes(torch.tensor(numbers, dtype=_CASTS[cast]).untyped_storage())
        except (RuntimeError, TypeError, OverflowError) as error:
            raise RuntimeError(f"{where}: {value!r} does not fit {cast}: {error}") from None


def _pack(numbers: Sequence[Scalar], where: str) -> bytes:
    kinds = {bool: "?", int: "q", float: "f"}
    kind = next(code for base, code in kinds.items() if isinstance(numbers[0], base))
    try:
        return struct.pack(f"={len(numbers)}{kind}", *numbers)
    except (struct.error, OverflowError) as error:
        raise RuntimeError(f"{where}: {numbers!r} cannot be passed: {error}") from None


class ShaderLibrary:
    """The kernels of a metallib, as attributes: `lib.kernel_name(*args)`; `dir(lib)` lists them."""

    def __init__(self, library: _simulator.Library) -> None:
        self._library = library
        self._kernels: dict[str, MetalKernel] = {}

    def __dir__(self) -> list[str]:
        return self._library.names()

    def __getattr__(self, name: str) -> MetalKernel:
        # Not in the caches that __init__ makes: copy and pickle ask a bare object.
        kernels = self.__dict__.get("_kernels")
        if kernels is None or name.startswith("__"):
            raise AttributeError(name)
        if name not in kernels:
            names = self._library.names()
            if name not in names:
                raise MissingKernelError(f"the library has no kernel {name!r}; it has: {', '.join(names) or 'none'}")
            kernels[name] = MetalKernel(name, self._library.kernel(name))
        return kernels[name]


def compile_shader(source: str) -> ShaderLibrary:
    """Compiles Metal source and returns its kernels, as `torch.mps.compile_shader` does.

    Headers of torch, such as `<c10/metal/utils.h>`, can be included. As in torch, arithmetic is safe math unless the
    environment has PYTORCH_MPS_FAST_MATH=1. The language is Metal 4 where the source asks for tensors, else 3.1.

    Raises:
        CompileError: the source does not compile.
    """
    if not isinstance(source, str):
        raise TypeError(f"compile_shader: expected Metal source as str, got {type(source).__name__}")
    math_mode = "fast" if os.environ.get("PYTORCH_MPS_FAST_MATH", "0") != "0" else "safe"
    with tempfile.TemporaryDirectory(prefix="mpsk-") as folder:  # once open, the file is not needed
        return ShaderLibrary(_simulator.Library(str(_compile(source, folder, compiler.std_for(source), math_mode))))


def load_metallib(source: str | os.PathLike[str] | bytes | bytearray) -> ShaderLibrary:
    """Opens a metallib, given as a path or as its bytes, as `torch.mps.load_metallib` does.

    Raises:
        RuntimeError: the metallib is missing, damaged, of another version, or was built by Apple's compiler.
    """
    if isinstance(source, (bytes, bytearray)):
        return ShaderLibrary(_simulator.Library(bytes(source)))
    if isinstance(source, (str, os.PathLike)):
        return ShaderLibrary(_simulator.Library(os.fspath(Path(source).absolute())))
    raise TypeError(f"load_metallib: expected bytes or a path, got {type(source).__name__}")


_INCLUDES = Path(torch.__file__).parent / "include"


def _compile(source: str, folder: str, std: str, math_mode: str) -> Path:
    output = Path(folder) / "shader.metallib"
    return compiler.compile(source, output, includes=[_INCLUDES], std=std, math_mode=math_mode)


_folder = tempfile.TemporaryDirectory(prefix="mpsk-")


def _compile_for_metal(source: str, std: str, math_mode: str) -> str:
    """For `newLibraryWithSource:`, which opens the file later: it stays until the process ends.

    As macOS does, it keeps the library for the processes to come, where the user's cache folder can be used.
    """
    fingerprint = clang.fingerprint(math_mode, std, torch.__version__, str(_INCLUDES), source)
    kept = clang.cache_folder() / f"library-{fingerprint[:20]}.metallib"
    if kept.exists():
        with contextlib.suppress(RuntimeError):  # damaged: it is replaced
            _simulator.Library(str(kept))
            return str(kept)
    made = _compile(source, tempfile.mkdtemp(dir=_folder.name), std, math_mode)
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            os.replace(shutil.copy(made, scratch), kept)
    return str(made)


_simulator.set_compiler(_compile_for_metal)
_RUN_COMPILER = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('compiler', None, '__main__')"
_simulator.set_instrumenter([sys.executable, "-c", _RUN_COMPILER, str(Path(__file__).parent)])
