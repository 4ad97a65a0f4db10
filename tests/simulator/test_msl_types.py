"""Scalar, vector, packed and matrix types of the shading language: what they compute and what they refuse.

Each case is a few statements and an expression; all run in one kernel. `f[k]` and `n[k]` are k, as float and int, but
only at run time, so that the compiler cannot work the answer out.
"""

import pytest
import torch

from mpskernels.simulator import load_metallib
from mpskernels.simulator.compiler import CompileError, compile

INF, NAN = float("inf"), float("nan")

# name -> (statements, value, expected)
CASES = {
    # scalars
    "sizes": ("", "sizeof(char) + 10 * sizeof(short) + 100 * sizeof(int) + 1000 * sizeof(long)", 8421),
    "sized_names": ("int8_t a = -1; uint8_t b = 255; ulong c = 1; uint64_t d = c;", "a + b + d", 255),
    "float_to_int_truncates": ("", "int(-1.75f * f[1]) * 10 + int(f[1] * 1.75f)", -9),
    "float_to_int_saturates": ("", "int(f[1] * 1e20f) == 2147483647 && int(-1e20f * f[1]) == -2147483647 - 1", 1),
    "float_to_uint_saturates": ("", "uint(f[1] * -5.0f) + (uint(f[1] * 1e20f) == 4294967295u)", 1),
    "float_to_uchar_saturates": ("", "uchar(f[1] * 300.0f) + char(f[1] * -300.0f)", 127),
    "nan_to_int_is_zero": ("", "int(as_type<float>(0x7fc00000 + n[0]))", 0),
    "float_to_bool": ("", "bool(f[2]) + bool(f[0])", 1),
    "shift_counts_are_masked": ("", "(n[1] << (n[1] * 33)) * 100 + (n[8] >> (n[1] * 34))", 202),
    "unsigned_wraps": ("", "uint(n[0]) - 1u == 4294967295u", 1),
    "char_is_signed": ("char c = char(200 + n[0]);", "c", -56),
    "literals_are_float": ("", "is_same_v<decltype(0.1), float> + is_same_v<decltype(1e3 + 0x1p-2), float>", 2),
    "literals_in_templates_are_float": ("", "sizeof(sum_with_literal(f[1]))", 4),
    # half
    "half_rounds_each_operation": ("half a = half(f[1]), b = half(0x1p-11f * f[1]);", "(a + b) + b == a", 1),
    "half_of_float_ties_to_even": ("", "float(half(2049.0f * f[1])) * 10000 + float(half(2051.0f * f[1]))", 20482052),
    "half_and_float_is_float": ("half a = 1.0h;", "(a + 0x1p-20f * f[1]) > 1.0f", 1),
    "half_overflows": ("half a = half(65504.0f * f[1]);", "a * half(2) > 1e6h || isinf(a + a)", 1),
    "half_subnormals": ("", "float(half(0x1p-24f * f[1])) == 0x1p-24f", 1),
    # bfloat
    "bfloat_size": ("", "sizeof(bfloat) * 10 + alignof(bfloat)", 22),
    "bfloat_rounds_to_even": ("", "float(bfloat(257.0f * f[1])) * 1000 + float(bfloat(259.0f * f[1]))", 256260),
    "bfloat_keeps_nan": ("", "isnan(bfloat(as_type<float>(0x7f800001 + n[0])))", 1),
    "bfloat_keeps_infinity": ("", "isinf(bfloat(as_type<float>(0x7f800000 + n[0])))", 1),
    "bfloat_rounds_each_operation": ("bfloat a = bfloat(f[1]), b = bfloat(0x1p-8f * f[1]);", "(a + b) + b == a", 1),
    "bfloat_with_float_is_float": ("bfloat a = bfloat(f[1]);", "(a + 0x1p-20f) > 1.0f", 1),
    "bfloat_with_int_is_bfloat": ("bfloat a = bfloat(f[8]) * 32;", "a + n[1]", 256),
    "bfloat_from_int": ("bfloat a = n[7]; a += 2; a *= a; ++a; a--;", "a", 81),
    "bfloat_to_float": ("bfloat a = 1.5bf; float b = a;", "b", 1.5),
    "bfloat_compares": ("bfloat a = bfloat(f[2]), b = 3;", "(a < b) + (a <= 2) + (a == 2.0f) + (a != b) + (b > a)", 5),
    "bfloat_times_float_assigned": ("bfloat a = bfloat(f[3]); float x = 2; x *= a; x += a;", "x", 9),
    "bfloat_function_is_float": (
        "bfloat a = bfloat(f[4]);",
        "is_same_v<decltype(sqrt(a)), float> + sqrt(a) + max(a, 9)",
        12,
    ),
    "bfloat_negates": ("bfloat a = bfloat(f[2]);", "-a - +a", -4),
    "bfloat_is_true": ("bfloat a = bfloat(f[2]); float r = 0; if (a) r = 1; if (!a) r = 2;", "r", 1),
    "bfloat_and_half_by_float": ("half h = half(bfloat(f[3])); bfloat b = bfloat(h);", "float(h) + b", 6),
    "bfloat_in_conditional": ("bfloat a = bfloat(f[3]); bfloat b = n[1] ? a : bfloat(9); b = n[0] ? b : 4;", "b", 4),
    # vectors: layout
    "float4_layout": ("", "sizeof(float4) * 100 + alignof(float4)", 1616),
    "float3_layout": ("", "sizeof(float3) * 100 + alignof(float3)", 1616),
    "half_layout": ("", "sizeof(half3) * 1000 + alignof(half3) * 100 + sizeof(half4) * 10 + alignof(half2)", 8884),
    "bool_layout": ("", "sizeof(bool2) * 100 + sizeof(bool3) * 10 + sizeof(bool4)", 244),
    "long_layout": ("", "sizeof(long2) * 100 + alignof(long4)", 1632),
    "bfloat_layout": ("", "sizeof(bfloat4) * 100 + sizeof(bfloat3) * 10 + alignof(bfloat2)", 884),
    "packed_layout": ("", "sizeof(packed_float3) * 100 + alignof(packed_float3) * 10 + sizeof(packed_char3)", 1243),
    "vec_names": ("", "is_same_v<vec<float, 4>, float4> + is_same_v<vec<half, 2>, half2> * 2", 3),
    # vectors: construction
    "splat": ("float4 v = f[2];", "v.x + v.y * 10 + v.z * 100 + v.w * 1000", 2222),
    "splat_of_int": ("half4 v = n[2]; float3 w = 3;", "v.w * w.z", 6),
    "scalars": ("float4 v(f[1], n[2], 3, 4.0h);", "dot(v, float4(1, 10, 100, 1000))", 4321),
    "vectors": ("float4 v(float2(1, 2), float2(f[3], 4));", "dot(v, float4(1, 10, 100, 1000))", 4321),
    "scalar_and_vectors": ("float4 v(1, float2(f[2], 3), 4);", "dot(v, float4(1, 10, 100, 1000))", 4321),
    "vector_and_scalar": ("float4 v(float3(1, f[2], 3), 4);", "dot(v, float4(1, 10, 100, 1000))", 4321),
    "scalar_and_vector": ("float4 v(1, float3(2, f[3], 4));", "dot(v, float4(1, 10, 100, 1000))", 4321),
    "packed_piece": ("packed_float3 p = float3(1, 2, f[3]); float4 v(p, 4);", "dot(v, float4(1, 10, 100, 1000))", 4321),
    "braces": ("float3 v = {1, 2, 3}; uint2 u{n[4] + 0u, 5};", "dot(v, float3(1, 10, 100)) + u.x + u.y", 330),
    "fewer_in_braces": ("uint4 v = {1, 2u + n[0], 3}; float2 w{f[7]};", "v.z + v.w * 10 + w.x + w.y", 10),
    "empty_braces": ("float3 v = {}; v += float3(0, 0, 0);", "v.x + v.y + v.z", 0),
    "converted": ("float4 v(int4(1, 2, 3, n[4]));", "dot(v, float4(1, 10, 100, 1000))", 4321),
    "static_cast": ("int2 v = static_cast<int2>(float2(1.9f, -1.9f) * f[1]);", "v.x * 10 + v.y", 9),
    "bool_from_int": ("bool3 v(int3(n[0], 2, -1));", "v.x + v.y * 10 + v.z * 100", 110),
    "bfloat_vector": ("bfloat4 v(float4(257, 1, 2, 3) * f[1]); float4 w(v);", "w.x + w.w", 259),
    "nan_vector_to_int": ("int2 v(float2(as_type<float>(0x7fc00000 + n[0]), 1e20f));", "v.x + (v.y == 2147483647)", 1),
    "constexpr": ("constexpr float3 v = float3(1, 2, 3) * 2; constexpr int k = int(v.y + v[2]);", "k", 10),
    # vectors: components
    "components": ("float4 v(1, 2, 3, 4);", "v.x + v.g * 10 + v.z * 100 + v.a * 1000", 4321),
    "selection": ("float4 v(1, 2, 3, 4);", "dot(v.wzyx, float4(1, 10, 100, 1000))", 1234),
    "colours": ("float4 v(1, 2, 3, 4);", "dot(v.bgra, float4(1, 10, 100, 1000)) + dot(v.rr, float2(1))", 4125),
    "repeated": ("float2 v(1, 2);", "dot(v.xyyx, float4(1, 10, 100, 1000))", 1221),
    "wider": ("float2 v(1, 2);", "dot(v.yxy, float3(1, 10, 100))", 212),
    "write_component": ("float4 v = 1; v.y = f[5]; v.b += 2;", "dot(v, float4(1, 10, 100, 1000))", 1351),
    "write_selection": ("float4 v = 0; v.wx = float2(f[5], 6);", "dot(v, float4(1, 10, 100, 1000))", 5006),
    "write_colours": ("float3 v = 0; v.bgr = float3(1, 2, 3);", "dot(v, float3(1, 10, 100))", 123),
    "write_scalar_to_selection": ("float4 v = 0; v.yz = f[7];", "dot(v, float4(1, 10, 100, 1000))", 770),
    "swap": ("float2 v(1, 2); v.xy = v.yx;", "v.x * 10 + v.y", 21),
    "compound_selection": ("float4 v(1, 2, 3, 4); v.xz *= float2(10, 100);", "v.x + v.z", 310),
    "compound_in_template": ("", "stepped(float2(1, 2), f[3]) + stepped(int2(1), n[2])", 17),
    "function_as_parameter": ("", "applied<twice>(f[4])", 8),
    "increments": ("int2 v(1, 2); v.x++; ++v.y; v++; --v;", "v.x * 10 + v.y", 23),
    "index": ("float4 v(1, 2, 3, 4); v[n[2]] = 9;", "v[n[1]] * 10 + v[2]", 29),
    "device_selection": ("memory->xy = memory[1].zw; memory->w = 5;", "dot(*memory, float4(1, 10, 0, 1000))", 5087),
    "device_compound": ("memory[2] += 1; memory[2].x *= 10;", "memory[2].x + memory[2].y", 111),
    "threadgroup_selection": (
        "shared[0] = float4(1, 2, 3, 4); shared[0].yz = shared[0].zy;",
        "shared->y * 10 + shared->z",
        32,
    ),
    "thread_pointer": ("float4 v(1, 2, 3, 4); thread float4* p = &v; p->zw = p->xy;", "v.z * 10 + v.w", 12),
    "conditional": ("float2 v(1, 2); float2 w = n[1] ? v : float2(3, 4); w = n[0] ? w : 7;", "w.x", 7),
    # vectors: operators
    "arithmetic": (
        "float2 v(f[6], 8), w(2, 4);",
        "dot(v + w, float2(1)) + dot(v - w, 1) + dot(v * w, 1) + dot(v / w, 1)",
        77,
    ),
    "scalar_operands": ("float2 v(f[6], 8);", "(2 * v - 1).y * 100 + (v / 2).x * 10 + (24 / v).x", 1534),
    "half_and_float_scalar": ("half2 v = half2(1) * 0.5f;", "v.x + is_same_v<decltype(v * 0.5f), half2>", 1.5),
    "float_and_half_scalar": ("float2 v = float2(1, 2) * 0.5h;", "v.y", 1),
    "negation": ("float2 v(1, f[2]);", "(-v).y + (+v).x", -1),
    "compound": (
        "int2 v(7, 9); v += 1; v -= int2(1, 2); v *= 3; v /= 2; v %= 8; v |= 16; v &= 23; v ^= 1;",
        "v.x * 100 + v.y",
        1921,
    ),
    "small_integers_wrap": ("uchar2 v = uchar2(250) + uchar2(n[10]);", "v.x", 4),
    "division_by_zero": ("int2 v = int2(5, 7) / int2(n[0], 2);", "v.y", 3),
    "remainder_by_zero": ("uint2 v = uint2(5, 7) % uint2(n[0], 4);", "v.y", 3),
    "smallest_by_minus_one": ("int2 v = int2(-2147483647 - 1, 6) / int2(-n[1]);", "v.y", -6),
    "shifts": (
        "int2 v = int2(1, -8) << 3; uint2 u = uint2(256) >> uint2(n[4], 36);",
        "v.x + v.y + int(u.x + u.y)",
        -24,
    ),
    "bits": ("uint2 v = (uint2(12, 10) & 6) | 1; v = ~v; v = ~v ^ uint2(0, 1);", "v.x * 10 + v.y", 52),
    "comparison": ("bool4 v = float4(1, 2, 3, 4) < f[3];", "v.x + v.y * 10 + v.z * 100 + v.w * 1000", 11),
    "comparisons": (
        "int2 v(1, 2), w(2, 2);",
        "all(v <= w) + any(v == w) * 10 + any(v > w) * 100 + all(v != 7) * 1000 + all(w >= v)",
        1012,
    ),
    "comparison_with_nan": ("float2 v = as_type<float>(0x7fc00000 + n[0]);", "is_same_v<decltype(v == v), bool2>", 1),
    "logic": ("bool2 v(true, false), w(n[1], n[1]);", "all((v && w) == v) + all(v || w) * 10 + any(!w) * 100", 11),
    "bfloat_vector_arithmetic": ("bfloat2 v = bfloat2(bfloat(f[1])) + bfloat(0x1p-8f);", "v.x", 1),
    # packed
    "packed_arithmetic": (
        "packed_float3 p = float3(1, 2, f[3]); packed_float3 q = p * 2 + p; q += 1;",
        "q[2] * 10 + q.x",
        104,
    ),
    "packed_selection": (
        "packed_float3 p = float3(1, 2, 3); p.xy = p.yx; p.b = 9; float3 v = p;",
        "dot(v, float3(1, 10, 100))",
        912,
    ),
    "packed_memory": (
        "device packed_float3* p = (device packed_float3*)f; packed_float3 q = p[1];",
        "q.x + float3(q).z",
        8,
    ),
    "packed_with_vector": ("packed_int2 p = int2(1, n[2]); int2 v = p + int2(1) - p;", "v.x + v.y", 2),
    # as_type
    "as_type_scalar": ("", "as_type<uint>(f[1]) == 0x3f800000u", 1),
    "as_type_vector": ("short2 v = as_type<short2>(n[1] * 0x20001);", "v.x * 10 + v.y", 12),
    "as_type_half": ("", "as_type<half>(ushort(0x3c00 + n[0]))", 1),
    "as_type_bfloat": ("", "as_type<bfloat>(ushort(0x3f80 + n[0]))", 1),
    "as_type_vec3": ("float3 v = as_type<float3>(float4(1, 2, f[3], 4));", "v.z", 3),
    # matrices
    "matrix_layout": ("", "sizeof(float3x3) * 1000 + sizeof(half2x3) * 10 + alignof(float4x2)", 48168),
    "matrix_diagonal": ("float3x3 m(f[2]);", "m[0][0] + m[1][1] * 10 + m[2][2] * 100 + m[0][1]", 222),
    "matrix_columns": ("float2x3 m(float3(1, 2, 3), float3(4, 5, f[6])); m[0].y = 9;", "m[0][1] * 100 + m[1].z", 906),
    "matrix_scalars": ("float2x2 m(1, 2, 3, f[4]);", "m[0][1] * 10 + m[1][0]", 23),
    "matrix_times_vector": (
        "float2x3 m(float3(1, 2, 3), float3(4, 5, 6));",
        "dot(m * float2(1, f[2]), float3(1, 10, 100))",
        1629,
    ),
    "vector_times_matrix": (
        "float2x3 m(float3(1, 2, 3), float3(4, 5, 6));",
        "dot(float3(1, 0, f[1]) * m, float2(1, 100))",
        1004,
    ),
    "matrix_product": ("float2x2 m(1, 2, 3, 4), p = m * m * 2;", "p[0][0] + p[1][1]", 58),
    "matrix_sum": ("float2x2 m(1, 2, 3, 4); m += m - float2x2(1);", "m[0][0] + m[1][0]", 7),
    "transpose": ("float3x2 m = transpose(float2x3(float3(1, 2, 3), float3(4, 5, 6)));", "m[2][1]", 6),
    "determinant2": ("", "determinant(float2x2(1, 2, 3, f[4]))", -2),
    "determinant3": ("", "determinant(float3x3(float3(2, 0, 1), float3(1, 3, 0), float3(0, 1, f[4])))", 25),
    "determinant4": (
        "float4x4 m(2.0f); m[1] = float4(1, 2, 0, f[3]); m[3] = float4(0, 1, 0, 1);",
        "determinant(m)",
        -4,
    ),
    # traits
    "traits": (
        "",
        "is_floating_point_v<half> + is_floating_point_v<bfloat> * 10 + is_integral_v<uchar> * 100"
        " + is_arithmetic_v<float4> * 1000",
        111,
    ),
    "traits_of_memory": (
        "",
        "is_same_v<remove_cv_t<const device float>, float> + is_integral_v<threadgroup int> * 10",
        11,
    ),
    "make_unsigned": ("", "is_same_v<make_unsigned_t<short>, ushort>", 1),
    "conditional_t": ("", "sizeof(conditional_t<(sizeof(float) > 2), half, long>)", 2),
    "limits": (
        "",
        "numeric_limits<short>::max() + numeric_limits<char>::lowest() + numeric_limits<uint>::digits",
        32671,
    ),
    "limits_of_floats": (
        "",
        "(numeric_limits<float>::max() == FLT_MAX) + (numeric_limits<half>::max() == HALF_MAX) * 10"
        " + (numeric_limits<bfloat>::max() == MAXBFLOAT) * 100 + isinf(numeric_limits<float>::infinity()) * 1000",
        1111,
    ),
    "array": (
        "array<float, 3> a = {1, 2, f[3]}; a[1] = 5; array<int, 2> b{}; ",
        "a[1] * 10 + a[2] + a.size() * 100 + b[1]",
        353,
    ),
    "constants": (
        "",
        "abs(sin(M_PI_F)) < 1e-6f && float(M_PI_H) == 3.140625f && UINT_MAX == 4294967295u && INT_MIN < 0",
        1,
    ),
}

SOURCE = """
#include <metal_stdlib>
using namespace metal;
template <typename T> auto sum_with_literal(T x) { return x + 0.1; }
template <typename T> void twice(thread T& x) { x = x * 2; }
template <void (*f)(thread float&)> float applied(float x) { f(x); return x; }
struct complex { float re, im; };
thread complex& operator+=(thread complex& a, complex b) { a.re += b.re; return a; }
template <typename V, typename T> float stepped(V v, T x) { v.x += x; v.y *= x; v.x++; return v.x + v.y; }
kernel void cases(device float* out, device const float* f, device const int* n, device float4* memory) {
  threadgroup float4 shared[2];
  %s
}
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    body = "\n".join(
        f"{{ {statements} out[{k}] = float({value}); }}" for k, (statements, value, _) in enumerate(CASES.values())
    )
    path = tmp_path_factory.mktemp("types") / "types.metallib"
    library = load_metallib(compile(SOURCE % body, path, math_mode="safe"))  # fast math may change what rounds
    out = torch.full((len(CASES),), NAN).to("mps")
    f = torch.arange(16, dtype=torch.float32).to("mps")
    n = torch.arange(16, dtype=torch.int32).to("mps")
    memory = torch.arange(1, 17, dtype=torch.float32).to("mps")
    library.cases(out, f, n, memory, threads=1)
    return dict(zip(CASES, out.cpu().tolist(), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_type(results, name):
    assert results[name] == CASES[name][2]


# What Apple's compiler refuses: name -> (statements, part of the message).
REFUSED = {
    "vector_from_other_element": ("float4 v = int4(1);", "no viable conversion"),
    "float_vector_from_half": ("float4 v = half4(1);", "no viable conversion"),
    "half_vector_from_float": ("half2 v = float2(1);", "no viable conversion"),
    "vector_assigned_other_element": ("float4 v; v = int4(1);", "no viable overloaded '='"),
    "vector_from_shorter": ("float4 v = float2(1);", "no viable conversion"),
    "vector_cast_to_shorter": ("float2 v = float2(float4(1));", "no matching"),
    "vector_to_scalar": ("float v = float2(1);", "no viable conversion"),
    "mixed_element_arithmetic": ("float4 v = float4(1) + half4(1);", "invalid operands"),
    "mixed_length_arithmetic": ("float4 v = float4(1) + float2(1);", "invalid operands"),
    "integer_vector_and_float": ("int2 v = int2(1) * 2.0f;", "invalid operands"),
    "too_few_components": ("float4 v = float4(1, 2, 3);", "no matching"),
    "too_many_components": ("float3 v = float3(1, 2, 3, 4);", "no matching"),
    "too_many_from_vectors": ("float4 v = float4(float3(1), float2(2));", "no matching"),
    "pieces_of_other_element": ("float4 v = float4(half2(1), 1, 1);", "no matching"),
    "component_beyond": ("float2 v; v.z = 1;", "no member named 'z'"),
    "mixed_names": ("float4 v; float2 w = v.xg;", "no member named 'xg'"),
    "repeated_on_the_left": ("float4 v; v.xx = float2(1);", "no setter"),
    "selection_of_wrong_length": ("float4 v; v.xy = float3(1);", "no viable conversion"),
    "pointer_to_selection": ("float4 v; thread float2* p = &v.xy;", "address of"),
    "narrowing_in_braces": ("float2 v = {n[0], n[1]};", "narrowed"),
    "write_to_temporary_selection": ("float4 v; v.xyz.x = 1;", ""),
    "vector_as_condition": ("float2 v; if (v == v) return;", "bool"),
    "float_vector_bits": ("float2 v = float2(1) & float2(1);", "invalid operands"),
    "float_vector_remainder": ("float2 v = float2(1) % 2;", "invalid operands"),
    "scalar_shifted_by_vector": ("int2 v = 1 << int2(1);", "invalid operands"),
    "bfloat_from_float": ("bfloat v = 1.0f;", "no viable conversion"),
    "bfloat_from_half": ("bfloat v = 1.0h;", "no viable conversion"),
    "half_from_bfloat": ("half v = bfloat(1);", "no viable conversion"),
    "bfloat_assigned_float": ("bfloat v; v = 1.0f;", "no viable overloaded '='"),
    "bfloat_plus_half": ("float v = bfloat(1) + 1.0h;", "deleted"),
    "bfloat_compared_with_half": ("bool v = 1.0h < bfloat(1);", "deleted"),
    "bfloat_vector_from_float": ("bfloat4 v = 1.0f;", "no viable conversion"),
    "bfloat_vector_and_half": ("bfloat2 v = bfloat2(1) * 1.0h;", "invalid operands"),
    "as_type_of_other_size": ("float4 v = as_type<float4>(half4(1));", "same size"),
    "as_type_of_struct": ("struct S { int a; } s; int v = as_type<int>(s);", "scalar or a vector"),
    "matrix_from_scalar": ("float2x2 m = 1.0f;", "no viable conversion"),
    "matrix_of_too_few": ("float2x2 m = float2x2(1, 2, 3);", "no matching"),
    "matrix_of_mixed_pieces": ("float2x3 m(float2(1), 1.0f, float2(1), 1.0f);", "no matching"),
    "matrix_product_of_wrong_shape": ("float2x2 m(1); float3 v = m * float3(1);", "invalid operands"),
    "double": ("double v = 1;", "double"),
    "half_matrix_to_float": ("float2x2 m = half2x2(1);", "no viable conversion"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_type_refuses(tmp_path, name):
    statements, message = REFUSED[name]
    with pytest.raises(CompileError) as error:
        compile(SOURCE % statements, tmp_path / "out.metallib", name="kernel.metal")
    assert message in str(error.value)
    assert "kernel.metal:12" in str(error.value)


def test_braces_refuse_too_many_values(tmp_path):
    with pytest.raises(CompileError, match="too many values"):
        compile(SOURCE % "float2 v = {f[0], f[1], f[2]}; out[0] = v.x;", tmp_path / "out.metallib")
