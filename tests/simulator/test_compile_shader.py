"""`compile_shader` and `load_metallib`: the calling convention and the errors of torch.mps's functions of that name."""

import copy
import ctypes
import math
import shutil
from pathlib import Path

import pytest
import torch

import mpskernels
from mpskernels import _C, simulator
from mpskernels.simulator import compiler

simulator.enable()

SOURCES = Path(mpskernels.__file__).parent / "metal"

SOURCE = r"""
#include <metal_stdlib>
using namespace metal;

kernel void full(device float* out, constant float& value, uint i [[thread_position_in_grid]]) { out[i] = value; }

kernel void add(device const float* a, device const float* b, device float* out, uint i [[thread_position_in_grid]]) {
  out[i] = a[i] + b[i];
}

template <typename T>
kernel void linear(device float* out, constant T& start, constant T& step, uint i [[thread_position_in_grid]]) {
  out[i] = float(start) + float(step) * i;
}
#define LINEAR(name, T) \
  template [[host_name("linear_" #name)]] kernel void linear<T>(device float*, constant T&, constant T&, uint);
LINEAR(f32, float)
LINEAR(f16, half)
LINEAR(bf16, bfloat)
LINEAR(i64, long)
LINEAR(i32, int)
LINEAR(i16, short)
LINEAR(u8, uchar)

kernel void polynomial(device float* out, constant float* c, constant long& n, uint i [[thread_position_in_grid]]) {
  float y = 0;
  for (long k = n - 1; k >= 0; --k) y = y * i + c[k];
  out[i] = y;
}

kernel void choose(device float* out, constant bool& yes, constant bool* list, uint i [[thread_position_in_grid]]) {
  out[i] = yes && list[i] ? 1 : 2;
}

kernel void where(device int* out, uint3 p [[thread_position_in_grid]], uint3 n [[threads_per_grid]],
                  uint3 group [[threads_per_threadgroup]]) {
  out[(p.z * n.y + p.y) * n.x + p.x] = group.x * 10000 + group.y * 100 + group.z;
}

[[max_total_threads_per_threadgroup(64)]]
kernel void small(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[63 - i];
}

kernel void maybe(device float* out, device const float* unused, uint i [[thread_position_in_grid]]) { out[i] = 3; }

kernel void not_a_number(device int* out, device const float* x, uint i [[thread_position_in_grid]]) {
  out[i] = x[i] != x[i];
}
"""

KERNELS = ["add", "choose", "full", "linear_bf16", "linear_f16", "linear_f32", "linear_i16", "linear_i32", "linear_i64"]
KERNELS += ["linear_u8", "maybe", "not_a_number", "polynomial", "small", "where"]


@pytest.fixture(scope="module")
def lib():
    return simulator.compile_shader(SOURCE)


@pytest.fixture
def x():
    return torch.zeros(6, device="mps")


# Calling ------------------------------------------------------------------------------------------


def test_kernels_are_attributes(lib):
    assert dir(lib) == KERNELS
    assert lib.full is lib.full
    assert repr(lib.full) == "<Metal kernel full>"


def test_call_with_tensors_and_numbers(lib, x):
    lib.full(x, 3.14)
    assert x.tolist() == pytest.approx([3.14] * 6)
    out = torch.empty(6, device="mps")
    lib.add(x, torch.arange(6.0, device="mps"), out)
    assert out.tolist() == pytest.approx([3.14 + i for i in range(6)])


def test_tensors_are_bound_at_their_offset(lib, x):
    lib.full(x[2:4], 1.0)
    assert x.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("kernel", "cast", "start", "step"),
    [
        ("linear_f32", None, 0.5, 0.25),
        ("linear_i64", None, 1 << 40, 1 << 41),
        ("linear_i32", None, 3, 4),  # the low bytes of a 64-bit number
        ("linear_f16", "fp16", 0.5, 0.25),
        ("linear_bf16", "bf16", 0.5, 2),
        ("linear_i32", "int32", -3, 4),
        ("linear_i16", "int16", -300, 4),
        ("linear_u8", "uint8", 3, 200),
        ("linear_f32", "fp32", 3, 4),
        ("linear_f16", {1: "fp16", 2: "fp16"}, 0.5, 0.25),
    ],
)
def test_numbers_take_the_type_that_arg_casts_names(lib, x, kernel, cast, start, step):
    getattr(lib, kernel)(x, start, step, arg_casts=cast)
    assert x.tolist() == [start + step * i for i in range(6)]


@pytest.mark.parametrize("sequence", [list, tuple])
def test_lists_of_numbers(lib, x, sequence):
    lib.polynomial(x, sequence([1.0, 2.0, 0.5]), 3)
    assert x.tolist() == [1 + 2 * i + 0.5 * i * i for i in range(6)]


def test_booleans(lib, x):
    lib.choose(x, True, [True, False, True, False, True, False])
    assert x.tolist() == [1, 2, 1, 2, 1, 2]


@pytest.mark.parametrize(
    ("threads", "group_size", "group"),
    [
        (6, None, (6, 1, 1)),
        (6, 4, None),
        ((3, 2), None, None),
        ([2, 3], (2, 3), (2, 3, 1)),
        ((1, 2, 3), (1, 2, 3), (1, 2, 3)),
    ],
)
def test_grid_and_threadgroup(lib, threads, group_size, group):
    out = torch.full((6,), -1, dtype=torch.int32, device="mps")
    lib.where(out, threads=threads, group_size=group_size)
    seen = out.tolist()
    assert -1 not in seen  # every thread ran
    if group:
        assert seen == [group[0] * 10000 + group[1] * 100 + group[2]] * 6


def test_threads_follow_the_first_tensor(lib):
    out = torch.zeros(8, device="mps")
    lib.full(out[:3], 2.0)
    assert out.tolist() == [2, 2, 2, 0, 0, 0, 0, 0]
    lib.full(out, 1.0, threads=5)
    assert out.tolist() == [1, 1, 1, 1, 1, 0, 0, 0]


def test_an_empty_grid_does_nothing(lib):
    lib.full(torch.empty(0, device="mps"), 1.0)
    lib.full(torch.empty(4, device="mps"), 1.0, threads=(2, 0))


@pytest.mark.parametrize(
    "empty", [lambda x: torch.empty(0, device="mps"), lambda x: x[6:]], ids=["unallocated", "view"]
)
def test_an_empty_tensor_is_bound(lib, x, empty):
    lib.maybe(x, empty(x))
    assert x.tolist() == [3] * 6
    lib.add(x, empty(x), x, threads=4)  # what it holds is zeros
    assert x.tolist() == [3] * 6


def test_none_binds_nothing(lib, x):
    with pytest.raises(RuntimeError, match=r"maybe: argument unused \(buffer 1, device const float \*\) is not bound"):
        lib.maybe(x, None)


def test_kernel_tells_its_limits(lib):
    assert lib.full.max_threads_per_threadgroup == 1024
    assert lib.full.thread_execution_width == 32
    assert lib.full.static_thread_group_memory_length == 0
    assert lib.small.max_threads_per_threadgroup == 64
    assert lib.small.static_thread_group_memory_length == 256


def test_default_group_respects_the_kernel(lib):
    out = torch.zeros(64, device="mps")
    lib.small(out)
    assert out.tolist() == list(range(63, -1, -1))


def test_headers_of_torch_can_be_included(x):
    lib = simulator.compile_shader("""
        #include <c10/metal/utils.h>
        kernel void greatest(device float* out, constant float& v, uint i [[thread_position_in_grid]]) {
          out[i] = c10::metal::max(v, float(i));
        }
    """)
    lib.greatest(x, 2.5)
    assert x.tolist() == [2.5, 2.5, 2.5, 3, 4, 5]


def test_arithmetic_is_safe_by_default(lib):
    out = torch.zeros(2, dtype=torch.int32, device="mps")
    lib.not_a_number(out, torch.tensor([1.0, math.nan], device="mps"))
    assert out.tolist() == [0, 1]


def test_library_outlives_its_variable(x):
    kernel = simulator.compile_shader(
        "kernel void one(device float* y, uint i [[thread_position_in_grid]]) { y[i] = 1; }"
    ).one
    kernel(x)
    del kernel
    assert x.tolist() == [1] * 6


def test_metal_compiles_source_at_run_time():
    """`newLibraryWithSource:options:error:`, called as C code calls Objective-C methods."""
    objc = ctypes.CDLL("libobjc.so.4")
    metal = ctypes.CDLL(simulator._simulator.__file__)
    for function in (
        objc.objc_msg_lookup,
        objc.objc_getClass,
        objc.sel_registerName,
        metal.MTLCreateSystemDefaultDevice,
    ):
        function.restype = ctypes.c_void_p
    objc.objc_msg_lookup.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def send(receiver, selector, *arguments):
        method = objc.objc_msg_lookup(receiver, objc.sel_registerName(selector))
        types = [ctypes.c_void_p if isinstance(a, int) else type(a) for a in arguments]
        return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, *types)(method)(
            receiver, objc.sel_registerName(selector), *arguments
        )

    pool = send(objc.objc_getClass(b"NSAutoreleasePool"), b"new")
    device = metal.MTLCreateSystemDefaultDevice()
    for source, count in ((b"kernel void f(device float* x) { x[0] = 1; }", 1), (b"kernel void f(", None)):
        text = send(objc.objc_getClass(b"NSString"), b"stringWithUTF8String:", ctypes.c_char_p(source))
        library = send(device, b"newLibraryWithSource:options:error:", text, 0, 0)
        assert library is None if count is None else send(send(library, b"functionNames"), b"count") == count
    send(pool, b"drain")


@pytest.fixture
def compilations(tmp_path, monkeypatch):
    """Runs an op from source; returns how many sources that compiled. The cache folder is of this test alone."""
    cache, rewritten = tmp_path / "cache" / "mpskernels", tmp_path / "rewritten"
    cache.mkdir(parents=True)
    rewritten.mkdir()
    shutil.copy(compiler.clang.precompiled_header("fast"), cache)  # would take seconds
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    monkeypatch.setenv("MPSK_KEEP_REWRITTEN", str(rewritten))
    metallib, folder = _C.metallib_path(), _C.cache_report()[0]
    _C.set_cache_folder("")

    def run(sources):
        _C.set_metallib(str(sources))
        y = mpskernels.rms_norm(torch.ones(8, device="mps"), None, 0.0)
        assert y.tolist() == [1] * 8
        count = len(list(rewritten.iterdir()))
        for file in rewritten.iterdir():
            file.unlink()
        return count

    yield run
    _C.set_metallib(metallib)
    _C.set_cache_folder(folder)


def test_metal_compiles_a_source_once(compilations, tmp_path):
    assert compilations(SOURCES) == 1
    assert compilations(SOURCES) == 0
    [kept] = (tmp_path / "cache" / "mpskernels").glob("library-*")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert compilations(SOURCES) == 1
    assert compilations(SOURCES) == 0
    changed = shutil.copytree(SOURCES, tmp_path / "metal")
    with (changed / "norm.metal").open("a") as file:
        file.write("// changed\n")
    assert compilations(changed) == 1


def test_metal_compiles_without_a_cache(compilations, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert compilations(SOURCES) == 1


# Through torch ------------------------------------------------------------------------------------


def test_torch_compiles_shaders(x):
    lib = torch.mps.compile_shader("kernel void two(device float* y, uint i [[thread_position_in_grid]]) { y[i] = 2; }")
    lib.two(x)
    torch.mps.synchronize()
    assert x.tolist() == [2] * 6


def test_inductor_generates_kernels_that_run():
    def f(x, y):
        return (x * y + 1).relu().sum(-1)

    x, y = torch.randn(2, 8, 40, device="mps")
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(x, y), f(x, y))


# metallibs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metallib(tmp_path_factory):
    source = "kernel void nine(device float* y, uint i [[thread_position_in_grid]]) { y[i] = 9; }"
    return compiler.compile(source, tmp_path_factory.mktemp("library") / "nine.metallib")


@pytest.mark.parametrize("load", [simulator.load_metallib, torch.mps.load_metallib])
@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: path.read_bytes()], ids=["str", "path", "bytes"])
def test_metallib_loads(metallib, x, form, load):
    load(form(metallib)).nine(x)
    assert x.tolist() == [9] * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda whole: whole[:2000], "is truncated or not a metallib"),
        (lambda whole: whole[:-1], "is truncated or not a metallib"),
        (lambda whole: whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:], "is damaged"),
        (lambda whole: b"MTLB" + whole, "was built by Apple's compiler"),
        (lambda whole: b"hello", "is not a metallib"),
        (lambda whole: b"", "is not a metallib"),
    ],
)
def test_broken_metallib_is_refused(metallib, change, message):
    with pytest.raises(RuntimeError, match=message):
        simulator.load_metallib(change(metallib.read_bytes()))


def test_missing_metallib_is_refused():
    with pytest.raises(RuntimeError, match=r"metallib '/nowhere/x\.metallib' does not exist"):
        simulator.load_metallib("/nowhere/x.metallib")
    with pytest.raises(TypeError, match="expected bytes or a path, got int"):
        simulator.load_metallib(3)


# Errors -------------------------------------------------------------------------------------------


def test_source_that_does_not_compile_is_refused():
    with pytest.raises(simulator.CompileError, match="undeclared identifier 'y'"):
        simulator.compile_shader("kernel void f(device float* x) {\n  y[0] = 1;\n}")
    with pytest.raises(SyntaxError):  # what torch raises
        simulator.compile_shader("Syntax error")
    with pytest.raises(TypeError, match="expected Metal source as str, got bytes"):
        simulator.compile_shader(b"kernel")


def test_missing_kernel_is_refused(lib):
    with pytest.raises(RuntimeError, match="the library has no kernel 'nope'; it has: add, choose, full"):
        _ = lib.nope
    assert not hasattr(lib, "nope")
    assert copy.copy(lib).full is lib.full


def test_missing_function_constant_is_refused(x):
    lib = simulator.compile_shader("""
        constant float factor [[function_constant(0)]];
        kernel void needs(device float* out, uint i [[thread_position_in_grid]]) { out[i] = factor; }
    """)
    with pytest.raises(RuntimeError, match=r"constant 'factor' \(index 0, float\) needs a value"):
        lib.needs(x)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ((torch.zeros(3), 1.0), {}, "full: argument 0: expected a tensor on device mps, got cpu"),
        ((3,), {}, "full: without a tensor argument"),
        (("x", "value"), {}, "full: argument 1: expected a tensor, a number or a list of numbers, got 'value'"),
        (("x", []), {}, r"full: argument 1: expected a tensor, a number or a list of numbers, got \[\]"),
        (("x", 1 << 70), {}, "full: argument 1: .* cannot be passed"),
        (("x", 300), {"arg_casts": "int8"}, "full: argument 1: 300 does not fit int8"),
        (("x", 1.0), {"arg_casts": "float8"}, "full: argument 1: arg_casts names no type: 'float8'"),
        (("x",), {}, r"full: argument value \(buffer 1, constant float &\) is not bound"),
        (("x", [1.0] * 2000), {}, r"full: argument value .*: setBytes takes 1 to 4096 bytes, got 8000"),
        (("x", 1.0), {"threads": ()}, "full: threads must be one to three non-negative integers"),
        (("x", 1.0), {"threads": (1, 1, 1, 1)}, "full: threads must be one to three non-negative integers"),
        (("x", 1.0), {"threads": -1}, "full: threads must be one to three non-negative integers, got -1"),
        (("x", 1.0), {"threads": 1.5}, "full: threads must be one to three"),
        (("x", 1.0), {"threads": (2, 2), "group_size": 2}, "full: threads has 2 dimensions and group_size 1"),
        (("x", 1.0), {"group_size": 0}, "full: threadsPerThreadgroup must not be 0"),
        (("x", 1.0), {"threads": 1 << 32}, r"full: the grid must be below 2\^32 threads"),
    ],
)
def test_call_is_refused(lib, x, arguments, keywords, message):
    arguments = [x if isinstance(value, str) and value == "x" else value for value in arguments]
    with pytest.raises(RuntimeError, match=message):
        lib.full(*arguments, **keywords)
    lib.full(x, 5.0)
    assert x.tolist() == [5] * 6


def test_too_many_threads_per_threadgroup_is_a_value_error(lib, x):
    with pytest.raises(ValueError, match=r"full: group_size \(1025,\) exceeds the limit of 1024 threads"):
        lib.full(x, 1.0, group_size=1025)
    with pytest.raises(ValueError, match="small: group_size"):
        lib.small(x, group_size=65)


def test_misaligned_tensor_is_refused(lib, x):
    bytes_ = torch.zeros(64, dtype=torch.uint8, device="mps")
    with pytest.raises(RuntimeError, match=r"argument out \(buffer 0, .*\): offset 2 is not a multiple of 4"):
        lib.full(bytes_[2:], 1.0, threads=1)
