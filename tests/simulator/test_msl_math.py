"""The standard library's functions of numbers, against fp64 references and the accuracies that are promised."""

import itertools

import numpy as np
import pytest
import torch

from mpskernels.simulator import load_metallib
from mpskernels.simulator.compiler import CompileError, compile

INF, NAN = float("inf"), float("nan")
EVERYWHERE = (-80.0, 80.0)

# name -> (reference in fp64, domain, ulp of the precise variant, ulp of the fast one; None: not promised)
UNARY = {
    "acos": (np.arccos, (-1, 1), 4, 5),
    "acosh": (np.arccosh, (1, 1e5), 4, None),
    "asin": (np.arcsin, (-1, 1), 4, 5),
    "asinh": (np.arcsinh, (-2, 1e5), 4, None),
    "atan": (np.arctan, (-1e3, 1e3), 5, 5),
    "atanh": (np.arctanh, (-0.999, 0.999), 5, None),
    "ceil": (np.ceil, (-1e4, 1e4), 0, 0),
    "cos": (np.cos, (-3.1415925, 3.1415925), 4, None),
    "cosh": (np.cosh, EVERYWHERE, 4, None),
    "cospi": (lambda x: np.cos(np.pi * x), (-1, 1), 4, None),
    "exp": (np.exp, EVERYWHERE, 4, 163),
    "exp2": (np.exp2, EVERYWHERE, 4, 163),
    "exp10": (lambda x: 10.0**x, (-30, 30), 4, None),
    "fabs": (np.abs, EVERYWHERE, 0, 0),
    "abs": (np.abs, EVERYWHERE, 0, 0),
    "floor": (np.floor, (-1e4, 1e4), 0, 0),
    "fract": (lambda x: x - np.floor(x), (-1e3, 1e3), 0, 0),
    "log": (np.log, (2, 1e9), 4, 3),
    "log2": (np.log2, (2, 1e9), 4, 2),
    "log10": (np.log10, (2, 1e9), 4, None),
    "rint": (np.rint, (-1e4, 1e4), 0, 0),
    "round": (lambda x: np.trunc(x + np.copysign(0.5, x)), (-1e4, 1e4), 0, 0),
    "rsqrt": (lambda x: 1 / np.sqrt(x), (1e-6, 1e6), 1, 2),  # 0 ulp in the specification
    "saturate": (lambda x: np.clip(x, 0, 1), (-2, 2), 0, 0),
    "sin": (np.sin, (-3.1415925, 3.1415925), 4, None),
    "sinh": (np.sinh, EVERYWHERE, 4, None),
    "sinpi": (lambda x: np.sin(np.pi * x), (-1, 1), 4, None),
    "sqrt": (np.sqrt, (0, 1e9), 0, 2),
    "tan": (np.tan, (-1.5, 1.5), 6, None),
    "tanh": (np.tanh, (-40, 40), 5, None),
    "tanpi": (lambda x: np.tan(np.pi * x), (-0.49, 0.49), 6, None),
    "trunc": (np.trunc, (-1e4, 1e4), 0, 0),
}
BINARY = {
    "atan2": (np.arctan2, 6),
    "copysign": (np.copysign, 0),
    "divide": (np.divide, 0),
    "fdim": (lambda x, y: np.maximum(x - y, 0), 0),
    "fmax": (np.maximum, 0),
    "fmin": (np.minimum, 0),
    "max": (np.maximum, 0),
    "min": (np.minimum, 0),
    "fmod": (np.fmod, 0),
    "pow": (lambda x, y: np.abs(x) ** y, 16),  # of |x|
    "powr": (lambda x, y: np.abs(x) ** y, 16),
}
TERNARY = {
    "fma": lambda x, y, z: x * y + z,
    "fmax3": lambda x, y, z: np.maximum(x, np.maximum(y, z)),
    "fmin3": lambda x, y, z: np.minimum(x, np.minimum(y, z)),
    "fmedian3": lambda x, y, z: np.median([x, y, z], axis=0),
    "max3": lambda x, y, z: np.maximum(x, np.maximum(y, z)),
    "min3": lambda x, y, z: np.minimum(x, np.minimum(y, z)),
    "median3": lambda x, y, z: np.median([x, y, z], axis=0),
}
COUNT = 1024


def calls(functions, arguments, scope="", vector=""):
    """Statements that write function k of this thread's arguments to out[k * n + i]."""
    wide = [f"{vector}({a})" if vector else a for a in arguments]
    pick = "[i % 2]" if vector else ""
    lines = []
    for k, name in enumerate(functions):
        given = [f"abs({a})" if name in ("pow", "powr") and a == wide[0] else a for a in wide]
        lines.append(f"out[{k} * n + i] = {scope}{name}({', '.join(given)}){pick};")
    return "\n".join(lines)


def kernels(name, functions, arguments):
    """Kernels of float, precise, fast and half, on scalars and on vectors."""
    for kind, scope, T in (("precise", "precise::", "float"), ("fast", "fast::", "float"), ("half", "", "half")):
        inputs = ", ".join(f"device const {T}* p{a}" for a in arguments)
        loads = " ".join(f"{T} {a} = p{a}[i];" for a in arguments)
        for shape, vector in (("", ""), ("3", f"{T}3")):
            yield f"""
kernel void {name}_{kind}{shape}(device {T}* out, {inputs}, uint i [[thread_position_in_grid]],
                                 uint n [[threads_per_grid]]) {{
  {loads}
  {calls(functions, arguments, scope, vector)}
}}"""


SOURCE = "#include <metal_stdlib>\nusing namespace metal;\n" + "\n".join(
    [*kernels("unary", UNARY, "x"), *kernels("binary", BINARY, "xy"), *kernels("ternary", TERNARY, "xyz")]
)

INTEGERS = ["char", "uchar", "short", "ushort", "int", "uint", "long", "ulong"]
# name -> (arguments, reference in Python's integers, where T has `bits` and range `low`..`high`)
INTEGER = {
    "abs": ("x", lambda t, x: abs(x)),
    "absdiff": ("xy", lambda t, x, y: abs(x - y)),
    "addsat": ("xy", lambda t, x, y: t.saturate(x + y)),
    "subsat": ("xy", lambda t, x, y: t.saturate(x - y)),
    "hadd": ("xy", lambda t, x, y: (x + y) >> 1),
    "rhadd": ("xy", lambda t, x, y: (x + y + 1) >> 1),
    "max": ("xy", lambda t, x, y: max(x, y)),
    "min": ("xy", lambda t, x, y: min(x, y)),
    "max3": ("xyz", lambda t, x, y, z: max(x, y, z)),
    "min3": ("xyz", lambda t, x, y, z: min(x, y, z)),
    "median3": ("xyz", lambda t, x, y, z: sorted((x, y, z))[1]),
    "clamp": ("xyz", lambda t, x, y, z: min(max(x, y), z)),
    "clz": ("x", lambda t, x: t.bits - (x & t.mask).bit_length()),
    "ctz": ("x", lambda t, x: ((x & t.mask) & -(x & t.mask)).bit_length() - 1 if x else t.bits),
    "popcount": ("x", lambda t, x: (x & t.mask).bit_count()),
    "reverse_bits": ("x", lambda t, x: int(f"{x & t.mask:0{t.bits}b}"[::-1], 2)),
    "rotate": ("xy", lambda t, x, y: (x & t.mask) << (y % t.bits) | (x & t.mask) >> (-y % t.bits)),
    "mulhi": ("xy", lambda t, x, y: (x * y) >> t.bits),
    "madhi": ("xyz", lambda t, x, y, z: ((x * y) >> t.bits) + z),
    "madsat": ("xyz", lambda t, x, y, z: t.saturate(x * y + z)),
}
SOURCE += "".join(
    f"""
kernel void integer_{T}(device {T}* out, device const {T}* px, device const {T}* py, device const {T}* pz,
                        uint i [[thread_position_in_grid]], uint n [[threads_per_grid]]) {{
  {T} x = px[i], y = py[i], z = pz[i];
  {"".join(f"out[{k} * n + i] = {name}({', '.join(a)});" for k, (name, (a, _)) in enumerate(INTEGER.items()))}
}}
kernel void integer_{T}3(device {T}* out, device const {T}* px, device const {T}* py, device const {T}* pz,
                         uint i [[thread_position_in_grid]], uint n [[threads_per_grid]]) {{
  {T}3 x = px[i], y = py[i], z = pz[i];
  {"".join(f"out[{k} * n + i] = {name}({', '.join(a)})[i % 3];" for k, (name, (a, _)) in enumerate(INTEGER.items()))}
}}"""
    for T in INTEGERS
)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    path = tmp_path_factory.mktemp("math") / "math.metallib"
    return load_metallib(compile(SOURCE, path, math_mode="safe"))


def run(kernel, count, *inputs):
    """The kernel's `count` results for each thread, as an array of that many rows."""
    arrays = [torch.from_numpy(np.ascontiguousarray(x)).to("mps") for x in inputs]
    out = torch.zeros(count, len(inputs[0]), dtype=arrays[0].dtype).to("mps")
    kernel(out, *arrays, threads=len(inputs[0]))
    return out.cpu().numpy()


def ulps(got, exact):
    """Distance in steps of got's type from the exact value's rounding. NaNs are no distance apart."""
    kind = got.dtype
    with np.errstate(over="ignore"):
        rounded = exact.astype(kind)
    signed = np.int32 if kind == np.float32 else np.int16
    order = [
        np.where(b < 0, np.iinfo(signed).min - b, b).astype(np.int64) for b in (got.view(signed), rounded.view(signed))
    ]
    steps = np.abs(order[0] - order[1])
    return np.where(np.isnan(got) & np.isnan(rounded), 0, np.where(np.isnan(got) | np.isnan(rounded), 1 << 30, steps))


def domain(name):
    low, high = UNARY[name][1]
    return np.random.default_rng(0).uniform(low, high, COUNT).astype(np.float32)


@pytest.mark.parametrize("shape", ["", "3"])
@pytest.mark.parametrize("variant", ["precise", "fast"])
@pytest.mark.parametrize("name", UNARY)
def test_unary_float(library, name, variant, shape):
    x = domain(name)
    got = run(getattr(library, f"unary_{variant}{shape}"), len(UNARY), x)[list(UNARY).index(name)]
    reference, _, precise, fast = UNARY[name]
    exact = reference(x.astype(np.float64))
    allowed = precise if variant == "precise" else fast
    if allowed is None:  # an absolute error, or a formula's
        np.testing.assert_allclose(got, exact, rtol=1e-3, atol=2**-13)
    else:
        assert ulps(got, exact).max() <= allowed


@pytest.mark.parametrize("shape", ["", "3"])
def test_unary_half_on_every_value(library, shape):
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    got = run(getattr(library, f"unary_half{shape}"), len(UNARY), x)
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        for row, (name, (reference, *_)) in zip(got, UNARY.items(), strict=True):
            exact = reference(wide)
            inside = np.isfinite(wide)
            if name in ("sinpi", "cospi", "tanpi"):
                inside &= np.abs(wide) <= 16  # numpy's pi * x is not exact enough beyond
            if name == "fract":
                exact = np.minimum(exact, 1 - 2**-11)
            worst = ulps(row, exact)[inside]
            if name in ("sinpi", "cospi", "tanpi"):  # zeros and poles, which numpy misses
                worst = worst[np.abs(exact[inside] % 1) > 1e-6]
                worst = worst[worst < 1 << 14]
            assert worst.max() <= (1 if UNARY[name][2] else 0), name


@pytest.mark.parametrize("shape", ["", "3"])
@pytest.mark.parametrize("variant", ["precise", "fast", "half"])
@pytest.mark.parametrize("name", BINARY)
def test_binary(library, name, variant, shape):
    rng = np.random.default_rng(1)
    kind = np.float16 if variant == "half" else np.float32
    x, y = (rng.uniform(-8, 8, COUNT).astype(kind) for _ in range(2))
    got = run(getattr(library, f"binary_{variant}{shape}"), len(BINARY), x, y)[list(BINARY).index(name)]
    reference, allowed = BINARY[name]
    exact = reference(x.astype(np.float64), y.astype(np.float64))
    if variant == "fast" and name in ("pow", "powr", "fmod"):
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    else:
        assert ulps(got, exact).max() <= (min(allowed, 1) if variant == "half" else allowed)


@pytest.mark.parametrize("shape", ["", "3"])
@pytest.mark.parametrize("variant", ["precise", "half"])
@pytest.mark.parametrize("name", TERNARY)
def test_ternary(library, name, variant, shape):
    rng = np.random.default_rng(2)
    kind = np.float16 if variant == "half" else np.float32
    x, y, z = (rng.uniform(-8, 8, 16 * COUNT).astype(kind) for _ in range(3))
    z = np.where(rng.random(z.size) < 0.5, (-x * y).astype(kind), z)  # cancels
    got = run(getattr(library, f"ternary_{variant}{shape}"), len(TERNARY), x, y, z)[list(TERNARY).index(name)]
    exact = TERNARY[name](*(a.astype(np.longdouble) for a in (x, y, z)))
    assert ulps(got, exact).max() == 0


class Integer:
    """A range of integers."""

    def __init__(self, name):
        self.bits = {"char": 8, "short": 16, "int": 32, "long": 64}[name.lstrip("u")]
        self.mask = (1 << self.bits) - 1
        self.signed = not name.startswith("u")
        self.low, self.high = (-1 << (self.bits - 1), (1 << (self.bits - 1)) - 1) if self.signed else (0, self.mask)
        self.kind = np.dtype(f"{'i' if self.signed else 'u'}{self.bits // 8}")

    def saturate(self, x):
        return min(max(x, self.low), self.high)


@pytest.mark.parametrize("shape", ["", "3"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integer(library, name, shape):
    kind = Integer(name)
    rng = np.random.default_rng(3)
    edges = [kind.low, kind.high, 0, 1, kind.high - 1, kind.low + 1, kind.high // 2 + 1, 7]
    grid = np.array([[v & kind.mask for v in row] for row in itertools.product(edges, repeat=3)], dtype=np.uint64)
    random = rng.integers(kind.low, kind.high, (512, 3), dtype=kind.kind, endpoint=True)
    columns = np.concatenate([grid.astype(kind.kind), random]).T
    got = run(getattr(library, f"integer_{name}{shape}"), len(INTEGER), *columns)
    for row, (function, (arguments, reference)) in zip(got, INTEGER.items(), strict=True):
        given = [[int(v) for v in columns["xyz".index(a)]] for a in arguments]
        expected = [reference(kind, *values) & kind.mask for values in zip(*given, strict=True)]
        assert [int(v) & kind.mask for v in row] == expected, function


# Single facts: name -> (statements, value, expected). `f[k]` and `n[k]` are k, known only at run time.
CASES = {
    # where the variants part
    "precise_tanh_far_out": ("", "precise::tanh(f[1] * 100)", 1),
    "fast_tanh_overflows": ("", "isnan(fast::tanh(f[1] * 50))", 1),
    "fast_pow_of_negative": ("", "isnan(fast::pow(-f[2], 2.0f))", 1),
    "precise_pow_of_negative": ("", "precise::pow(-f[2], 3.0f)", -8),
    "precise_powr_of_negative": ("", "isnan(precise::powr(-f[2], 2.0f))", 1),
    "default_is_safe_here": ("", "tanh(f[1] * 50)", 1),
    "fast_and_precise_take_vectors": ("", "fast::exp(float2(f[0])).x + precise::log(float4(f[1])).w", 1),
    # NaN, infinity, zero
    "max_drops_nan": ("", "max(nan, f[2]) + fmax(f[2], nan)", 4),
    "min_of_nans": ("", "isnan(fmin(nan, nan))", 1),
    "clamp_of_nan": ("", "clamp(nan, f[2], f[3])", 2),
    "saturate_of_nan": ("", "saturate(nan)", 0),
    "median_drops_nan": ("", "median3(nan, f[2], nan)", 2),
    "fract_of_small_negative": ("", "fract(-1e-9f * f[1]) < 1", 1),
    "round_half_away": ("", "round(f[1] * 2.5f) * 10 + round(f[1] * -2.5f)", 27),
    "rint_half_even": ("", "rint(f[1] * 2.5f) * 10 + rint(f[1] * 3.5f)", 24),
    "sinpi_is_exact": (
        "",
        "sinpi(f[5]) == 0 && cospi(f[5] / 2) == 0 && cospi(f[3]) == -1 && sinpi(f[1] * 2.5f) == 1",
        1,
    ),
    # second results
    "sincos": ("float c; float s = sincos(f[1], c);", "s * s + c * c > 0.9999f && s > c", 1),
    "sincos_of_vector": ("half2 c; half2 s = sincos(half2(0.5h), c);", "s.x < c.y", 1),
    "frexp": ("int e; float m = frexp(f[12], e);", "m * 100 + e", 79),
    "frexp_of_vector": ("int3 e; half3 m = frexp(half3(12), e);", "m.y * 100 + e.z", 79),
    "modf": ("float w; float r = modf(-2.75f * f[1], w);", "w * 10 + r", -20.75),
    "ldexp": ("", "ldexp(f[3], n[4]) + float(ldexp(3.0h, -1)) + ldexp(float2(1), int2(n[3])).y", 57.5),
    "ilogb": ("", "ilogb(f[9]) * 10 + ilogb(0.25h) + ilogb(float2(8)).x", 31),
    "nextafter": ("", "nextafter(f[1], f[2]) == 1.00000012f && nextafter(half(f[1]), 2.0h) == 1.0009766h", 1),
    "nextafter_zero": ("", "as_type<ushort>(nextafter(half(f[0]), -1.0h))", 0x8001),
    # common
    "mix": ("", "mix(f[2], f[4], 0.25f) * 10 + mix(half2(2, 4), half2(4, 8), half2(0.5h)).y", 31),
    "step": ("", "step(f[2], f[1]) + step(f[2], f[2]) * 10 + step(float2(1), f[3]).x * 100", 110),
    "smoothstep": ("", "smoothstep(f[0], f[4], f[2]) + smoothstep(f[0], f[4], f[5]) * 10", 10.5),
    "sign": ("", "sign(-f[3]) + sign(f[3]) * 10 + sign(nan) + sign(half3(2)).z * 100", 109),
    "clamp_of_vector": ("", "dot(clamp(float3(-1, 5, 1), 0, 2), float3(1, 10, 100))", 120),
    "overload_takes_scalar": ("", "max(float2(1, 3), 2).x * 10 + min(uint2(1, 3), 2u).y + max(half2(1), 2.0f).x", 24),
    # bits
    "extract_bits": (
        "",
        "extract_bits(uint(n[0]) + 0xabcdu, 4u, 8u) == 0xbc && extract_bits(n[0] + 0xf0, 4u, 4u) == -1",
        1,
    ),
    "extract_no_bits": ("", "extract_bits(n[7], 3u, 0u) + extract_bits(int2(-n[1]), 0u, 32u).x", -1),
    "insert_bits": ("", "insert_bits(ushort(0xffff), ushort(n[0]), 4u, 8u) == 0xf00f", 1),
    "insert_all_bits": ("", "insert_bits(ulong(n[1]), ulong(n[2]), 0u, 64u)", 2),
    "mul24": (
        "",
        "mul24(n[3], -n[5]) + mul24(0x1000002u, 4u) + mad24(n[2], 3, 4) + mad24(uint2(2), uint2(3), uint2(1)).x",
        10,
    ),
    # relational
    "classes": (
        "",
        "isnan(nan) + isinf(-inf) * 10 + isfinite(f[1]) * 100 + isnormal(f[0]) * 1000 + signbit(-f[0]) * 10000",
        10111,
    ),
    "classes_of_half": (
        "half2 v = half2(inf, nan);",
        "isinf(v).x + isnan(v).y * 10 + isfinite(v).x * 100 + isnormal(1e-6h) + isnormal(0x1p-20h)",
        11,
    ),
    "classes_of_bfloat": (
        "",
        "isnan(bfloat(nan)) + isinf(bfloat(inf)) * 10 + signbit(-bfloat(1)) * 100 + isnormal(bfloat(f[1])) * 1000",
        1111,
    ),
    "ordered": ("", "isordered(f[1], f[2]) + isunordered(f[1], nan) * 10 + isordered(float2(nan), float2(1)).x", 11),
    "all_any": (
        "bool3 v(true, n[0], true);",
        "all(v) + any(v) * 10 + all(bool2(true)) * 100 + any(bool4(false)) * 1000 + all(true)",
        111,
    ),
    "not": ("bool2 v = not bool2(true, false);", "v.x + v.y * 10", 10),
    "select": ("", "select(f[1], f[2], true) * 10 + select(int2(1, 2), int2(3, 4), bool2(true, n[0])).x", 23),
    "select_vector": ("", "dot(select(float2(1, 2), float2(3, 4), bool2(false, true)), float2(1, 10))", 41),
    # geometry
    "dot": ("", "dot(float4(1, 2, 3, 4), float4(f[1], 10, 100, 1000))", 4321),
    "cross": ("", "dot(cross(float3(1, 2, 3), float3(4, 5, f[6])), float3(1, 10, 100))", -243),
    "length": ("", "length(float2(3, f[4])) * 10 + length_squared(half2(1, 2))", 55),
    "distance": ("", "distance(float3(1, 2, 3), float3(1, 5, f[7])) * 10 + distance_squared(float2(1), float2(2))", 52),
    "normalize": ("", "normalize(float2(3, f[4])).x - 0.6f < 1e-6f", 1),
    "reflect": ("", "dot(reflect(float2(1, -1), float2(0, f[1])), float2(1, 10))", 11),
    "refract": ("", "dot(refract(float2(0, -1), float2(0, f[1]), 0.5f), float2(1, 10))", -10),
    "faceforward": ("", "faceforward(float2(1, 2), float2(0, -1), float2(0, f[1])).y", 2),
    # packing
    "pack_unorm4x8": ("", "pack_float_to_unorm4x8(float4(0, 1, 0.5f, f[2])) == 0xff80ff00u", 1),
    "pack_snorm4x8": ("", "pack_half_to_snorm4x8(half4(-1, 1, 0, half(-f[3]))) == 0x81007f81u", 1),
    "pack_16": (
        "",
        "pack_float_to_unorm2x16(float2(f[1], 0)) == 0xffffu && pack_float_to_snorm2x16(float2(0, -1)) == 0x80010000u",
        1,
    ),
    "pack_colours": (
        "",
        "pack_float_to_unorm10a2(float4(f[1], 0, 0, 1)) == 0xc00003ffu"
        " && pack_float_to_unorm565(float3(1, 0, 0)) == 0xf800",
        1,
    ),
    "pack_srgb": ("", "pack_float_to_srgb_unorm4x8(float4(0.5f * f[1])) == 0x80bcbcbcu", 1),
    "pack_nan": ("", "pack_float_to_unorm4x8(float4(nan))", 0),
    "unpack_unorm4x8": (
        "float4 v = unpack_unorm4x8_to_float(0xff8000ffu + n[0]);",
        "v.x + v.y + v.w * 10 + (v.z > 0.5f)",
        12,
    ),
    "unpack_snorm4x8": (
        "half4 v = unpack_snorm4x8_to_half(0x7f0081u + 0x8000u * n[1]);",
        "v.x + v.y * 10 + v.z * 100",
        89,
    ),
    "unpack_16": ("", "unpack_unorm2x16_to_float(0xffff0000u + n[0]).y + unpack_snorm2x16_to_float(0x8000u).x", 0),
    "unpack_colours": (
        "float4 v = unpack_unorm10a2_to_float(0xc00003ffu); float3 w = unpack_unorm565_to_float(0xf800);",
        "v.x + v.y + v.w + w.x + w.z",
        3,
    ),
    "unpack_srgb": ("", "abs(unpack_unorm4x8_srgb_to_float(0x80bcbcbcu + n[0]).x - 0.5f) < 0.005f", 1),
}
CASES_SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void cases(device float* out, device const float* f, device const int* n) {
  float nan = as_type<float>(0x7fc00000 + n[0]), inf = as_type<float>(0x7f800000 + n[0]);
  %s
}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    body = "\n".join(
        f"{{ {statements} out[{k}] = float({value}); }}" for k, (statements, value, _) in enumerate(CASES.values())
    )
    path = tmp_path_factory.mktemp("cases") / "cases.metallib"
    library = load_metallib(compile(CASES_SOURCE % body, path, math_mode="safe"))
    out = torch.full((len(CASES),), NAN).to("mps")
    f = torch.arange(16, dtype=torch.float32).to("mps")
    library.cases(out, f, f.to("cpu").int().to("mps"), threads=1)
    return dict(zip(CASES, out.cpu().tolist(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_function(results, name):
    assert results[name] == pytest.approx(CASES[name][2], abs=1e-5)


@pytest.mark.parametrize(("mode", "expected"), [("fast", True), ("relaxed", False), ("safe", False)])
def test_math_mode_chooses_the_variant(tmp_path, mode, expected):
    source = CASES_SOURCE % "out[0] = isnan(tanh(f[1] * 50));"
    library = load_metallib(compile(source, tmp_path / "mode.metallib", math_mode=mode))
    out = torch.zeros(1).to("mps")
    f = torch.ones(2).to("mps")
    library.cases(out, f, torch.zeros(1, dtype=torch.int32).to("mps"), threads=1)
    assert bool(out.cpu()[0]) == expected


# name -> (statements, part of the message)
REFUSED = {
    "ambiguous_of_int": ("float v = exp(n[1]);", "ambiguous"),
    "ambiguous_max": ("float v = max(n[1], f[1]);", "ambiguous"),
    "ambiguous_signs": ("int v = min(n[1], 2u);", "ambiguous"),
    "mixed_vectors": ("float2 v = max(float2(1), half2(1));", "no matching"),
    "wrong_length": ("float v = dot(float2(1), float3(1));", "no matching"),
    "fast_half_vector": ("half2 v = fast::exp(half2(1));", "no matching"),
    "any_of_float": ("bool v = any(float2(1));", "no matching"),
    "cross_of_two": ("float v = cross(float2(1), float2(1)).x;", "no matching"),
    "erf": ("float v = erf(f[0]);", "erf"),
    "sincos_to_device": ("float v = sincos(f[1], out[0]);", "no matching"),
    "clz_of_float": ("float v = clz(f[1]);", "ambiguous"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_function_refuses(tmp_path, name):
    statements, message = REFUSED[name]
    with pytest.raises(CompileError) as error:
        compile(CASES_SOURCE % statements, tmp_path / "out.metallib", name="kernel.metal")
    assert message in str(error.value)
    assert "kernel.metal:6" in str(error.value)


def test_functions_need_their_namespace(tmp_path):
    with pytest.raises(CompileError, match="exp"):
        compile("#include <metal_stdlib>\nfloat g(float x) { return exp(x); }\n", tmp_path / "out.metallib")
