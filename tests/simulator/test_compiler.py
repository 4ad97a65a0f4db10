"""The simulator's compiler: kernels, arguments, constants and memory as Metal has them, and what it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpskernels import simulator
from mpskernels.simulator import compiler
from mpskernels.simulator.compiler import CompileError, clang
from mpskernels.simulator.compiler.rewrite import rewrite

PREFIX = "#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\nusing namespace metal;\n"


def run(source, name="k", count=32, dtype=torch.float32, threads=None, group_size=None):
    """The kernel's first `count` outputs, which it writes to its argument 0."""
    out = torch.full((count,), -1, dtype=dtype, device="mps")
    getattr(simulator.compile_shader(PREFIX + source), name)(
        out, threads=threads or count, group_size=group_size or count
    )
    return out.cpu().tolist()


# --- Kernels and instantiations ---------------------------------------------------------------


def test_kernel_forms():
    library = simulator.compile_shader(
        PREFIX
        + """
        kernel void keyword(device float* out) { out[0] = 1; }
        [[kernel]] void attribute(device float* out) { out[0] = 2; }
        [[host_name("other name")]] kernel void renamed(device float* out) { out[0] = 3; }
        namespace a { namespace b { kernel void nested(device float* out) { out[0] = 4; } } }
        template <typename T, int N> kernel void typed(device float* out) { out[0] = sizeof(T) * 10 + N; }
        template [[host_name("typed_half")]] kernel void typed<half, 3>(device float*);
        template [[host_name("typed_float")]] [[kernel]] decltype(typed<float, 4>) typed<float, 4>;
        #define INSTANTIATE(name, ...) template [[host_name(#name)]] [[kernel]] decltype(__VA_ARGS__) __VA_ARGS__;
        INSTANTIATE(typed_char, typed<char, 5>)
        template <> [[host_name("typed_long")]] kernel void typed<long, 6>(device float* out) { out[0] = 7; }
        """
    )
    expected = {
        "keyword": 1,
        "attribute": 2,
        "other name": 3,
        "a::b::nested": 4,
        "typed_half": 23,
        "typed_float": 44,
        "typed_char": 15,
        "typed_long": 7,
    }
    assert set(dir(library)) >= expected.keys()
    for name, value in expected.items():
        out = torch.zeros(1, device="mps")
        getattr(library, name)(out)
        assert out.item() == value, name


POSITIONS = """
kernel void k(device uint* out, uint index [[thread_index_in_threadgroup]],
              {type} gid [[thread_position_in_grid]], {type} tid [[thread_position_in_threadgroup]],
              {type} tg [[threadgroup_position_in_grid]], {type} grid [[threads_per_grid]],
              {type} size [[threads_per_threadgroup]], {type} groups [[threadgroups_per_grid]],
              {type} asked [[dispatch_threads_per_threadgroup]]) {{
  {flat}
  device uint* o = out + at * 7 * {n};
  for (int i = 0; i < {n}; ++i) {{
    {type} all[] = {{gid, tid, tg, grid, size, groups, asked}};
    for (int j = 0; j < 7; ++j) o[j * {n} + i] = all[j]{subscript};
  }}
}}
"""


@pytest.mark.parametrize("scalar", ["uint", "ushort"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_position_attributes(scalar, n):
    grid, group = ([5, 3, 2], [2, 2, 1]) if n > 1 else ([5], [2])
    grid, group = grid[:n], group[:n]
    flat = {
        1: "uint at = gid;",
        2: "uint at = gid.x + gid.y * grid.x;",
        3: "uint at = gid.x + (gid.y + gid.z * grid.y) * grid.x;",
    }[n]
    source = POSITIONS.format(
        type=scalar + (str(n) if n > 1 else ""), n=n, flat=flat, subscript="[i]" if n > 1 else ""
    ).replace("uint index [[thread_index_in_threadgroup]]", f"{scalar} index [[thread_index_in_threadgroup]]")
    count = torch.tensor(grid).prod().item()
    out = torch.full((count, 7, n), -1, dtype=torch.int32, device="mps")
    simulator.compile_shader(PREFIX + source).k(out, threads=grid, group_size=group)
    out = out.cpu()
    for at in range(count):
        gid, rest = [], at
        for extent in grid:
            gid.append(rest % extent)
            rest //= extent
        tg = [g // s for g, s in zip(gid, group, strict=True)]
        expected = [
            gid,
            [g % s for g, s in zip(gid, group, strict=True)],
            tg,
            grid,
            [min(s, e - t * s) for s, e, t in zip(group, grid, tg, strict=True)],
            [-(-e // s) for e, s in zip(grid, group, strict=True)],
            group,
        ]
        assert out[at].tolist() == expected


def test_index_attributes():
    source = """
    kernel void k(device ushort* out, ushort index [[thread_index_in_threadgroup]],
                  ushort lane [[thread_index_in_simdgroup]], ushort simdgroup [[simdgroup_index_in_threadgroup]],
                  ushort simdgroups [[simdgroups_per_threadgroup]], ushort width [[threads_per_simdgroup]],
                  ushort quad_lane [[thread_index_in_quadgroup]], ushort quad [[quadgroup_index_in_threadgroup]],
                  ushort quads [[quadgroups_per_threadgroup]]) {
      device ushort* o = out + index * 7;
      o[0] = lane; o[1] = simdgroup; o[2] = simdgroups; o[3] = width; o[4] = quad_lane; o[5] = quad; o[6] = quads;
    }
    """
    out = run(source, count=70 * 7, dtype=torch.int16, threads=70, group_size=70)
    for i in range(70):
        assert out[i * 7 : i * 7 + 7] == [i % 32, i // 32, 3, 32, i % 4, i // 4, 18]


def test_arguments_are_numbered_in_order_where_they_name_no_index():
    source = """
    enum Index : int { kLast = 3 };
    kernel void k(device float* a, device float* d [[buffer(kLast)]], constant float& b, constant float2& c) {
      a[0] = b; a[1] = c.x; a[2] = c.y; d[0] = 9;
    }
    """
    a, d = torch.zeros(3, device="mps"), torch.zeros(1, device="mps")
    simulator.compile_shader(PREFIX + source).k(a, 5.0, [6.0, 7.0], d, threads=1)
    assert a.tolist() + d.tolist() == [5, 6, 7, 9]


def test_max_total_threads_attribute():
    source = """
    [[max_total_threads_per_threadgroup(64)]] kernel void plain(device float* out) { out[0] = 1; }
    template <int N> [[kernel, max_total_threads_per_threadgroup(N * 32)]] void sized(device float* out) { out[0] = N; }
    template [[host_name("sized_2")]] [[kernel]] decltype(sized<2>) sized<2>;
    template [[host_name("sized_4")]] [[kernel]] decltype(sized<4>) sized<4>;
    """
    library = simulator.compile_shader(PREFIX + source)
    assert library.plain.max_threads_per_threadgroup == 64
    assert library.sized_2.max_threads_per_threadgroup == 64
    assert library.sized_4.max_threads_per_threadgroup == 128


def test_kernels_of_one_name_and_deduced_arguments():
    source = """
    template <typename T, int N>
    [[kernel, max_total_threads_per_threadgroup(N * 32)]] void k(device float* out) { out[0] = N; }
    template <typename T, typename U, int N>
    [[kernel, max_total_threads_per_threadgroup(N * 64)]] void k(device float* out, constant U& x) { out[0] = N + x; }
    template <typename T> kernel void deduced(device T* out, uint i [[thread_position_in_grid]]) { out[i] = sizeof(T); }
    template [[host_name("two")]] [[kernel]] decltype(k<half, 4>) k<half, 4>;
    template [[host_name("three")]] [[kernel]] void k<half, float, 1>(device float*, constant float& x);
    template [[host_name("half")]] kernel void deduced(device half* out, uint i);
    template [[host_name("int")]] kernel void deduced(device int* out, uint i [[thread_position_in_grid]]);
    """
    library = simulator.compile_shader(PREFIX + source)
    out = torch.zeros(1, device="mps")
    library.two(out)
    assert out.item() == 4
    library.three(out, 5.0)
    assert out.item() == 6
    assert [library.two.max_threads_per_threadgroup, library.three.max_threads_per_threadgroup] == [128, 64]
    for name, dtype, size in (("half", torch.float16, 2), ("int", torch.int32, 4)):
        out = torch.zeros(3, dtype=dtype, device="mps")
        getattr(library, name)(out)
        assert out.tolist() == [size] * 3


def test_variables_with_the_name_of_a_kernel():
    source = """
    kernel void k(device float* out, uint i [[thread_position_in_grid]]) {
      float sum = 0;
      for (uint k = 0; k < 4; ++k) sum += simd_sum(float(k));
      threadgroup_barrier(mem_flags::mem_none);
      out[i] = sum;
    }
    """
    assert run(source) == [6 * 32] * 32


@pytest.mark.parametrize(
    ("body", "joins"),
    [
        ("x += simd_sum(x);", 0),
        ("if (j > 2) x += 1; x += simd_sum(j & 1 ? x : 2); while (x > 9) x -= 1;", 0),
        ("if (N == 1) { simdgroup_barrier(mem_flags::mem_none); } else { x += simd_sum(x); }", 0),
        ("if constexpr (N == 1) { x += simd_sum(x); }", 0),
        ("if (N == 1) x += 1; else x += simd_sum(x);", 1),  # an else without braces is not looked into
        ("if (M == 1) x += simd_sum(x);", 1),  # here M is a variable
        ("if (x > 1) { x += simd_sum(x); }", 1),
        ("if (x > 1) { x = 2; } else { x = 3; { x += simd_sum(x); } }", 1),
        ("if (N > 1) { if (x > 1) x += 1; else x += simd_sum(x); }", 1),
        ("if (x > 1) continue; x += simd_sum(x);", 1),
        ("x += x > 1 ? simd_sum(x) : 2;", 1),
        ("x += x > 1 && simd_any(x > 3);", 1),
        ("x += x > 1 ? float2{1, 2}.x : simd_sum(x);", 1),
        ("switch (int(x)) { case 1: x += simd_sum(x); }", 1),
        ("for (int i = 0; i < x; ++i) x += simd_sum(x);", 1),
        ("x += guarded(x);", 1),
    ],
)
def test_loops_in_which_no_lane_can_pass_an_operation_by_need_no_meeting(body, joins):
    source = f"""
    float guarded(float x) {{ if (x > 1) return simd_sum(x); return x; }}
    template <int M> int other() {{ return M; }}
    template <int N> void work(device float* out, uint i) {{
      float x = i; int M = i;
      for (int j = 0; j < 4; ++j) {{ {body} }}
      out[i] = x + M;
    }}
    kernel void k(device float* out, uint i [[thread_position_in_grid]]) {{ work<1>(out, i); }}
    """
    assert rewrite(source).count("mpsk::join") == joins


# --- Memory -----------------------------------------------------------------------------------


def test_threadgroup_declarations():
    source = """
    struct Pair { float a; half b; };
    template <typename T, int N> void fill(threadgroup T* memory, uint i) { memory[i] = T(i) * T(N); }
    template <int N>
    kernel void k(device float* out, uint i [[thread_index_in_threadgroup]]) {
      constexpr int extent = N * 8;
      threadgroup float rows[2][extent], scalar;
      threadgroup Pair pairs[4];
      alignas(64) threadgroup half aligned[3];
      threadgroup uchar bytes[5] = {0};
      fill<float, 2>(&rows[1][0], i);
      if (i == 0) { scalar = 3; pairs[3].b = 4; aligned[2] = 5; bytes[4] = 6; }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      {
        threadgroup float inner[extent];
        inner[i] = rows[1][extent - 1 - i];
        threadgroup_barrier(mem_flags::mem_threadgroup);
        out[i] = inner[i] + scalar + pairs[3].b + aligned[2] + bytes[4];
      }
      if (i == 0) out[0] = (ulong)&aligned[0] % 64;
    }
    template [[host_name("k32")]] kernel void k<4>(device float*, uint);
    """
    library = simulator.compile_shader(PREFIX + source)
    out = torch.zeros(32, device="mps")
    library.k32(out, threads=32, group_size=32)
    assert out.tolist() == [0] + [2 * (31 - i) + 18 for i in range(1, 32)]
    bytes_needed = 2 * 32 * 4 + 4 + 4 * 8 + 3 * 2 + 5 + 32 * 4
    assert bytes_needed <= library.k32.static_thread_group_memory_length <= bytes_needed + 64 + 16


def test_each_threadgroup_has_its_own_memory_and_kernels_their_own_layout():
    source = """
    kernel void a(device float* out, uint i [[thread_position_in_grid]], uint t [[thread_index_in_threadgroup]]) {
      threadgroup float shared[8];
      shared[t] = i;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      out[i] = shared[7 - t];
    }
    kernel void none(device float* out) { out[0] = 1; }
    """
    assert run(source, "a", count=64, group_size=8) == [i // 8 * 8 + 7 - i % 8 for i in range(64)]
    assert simulator.compile_shader(PREFIX + source).none.static_thread_group_memory_length == 0


def test_program_scope_constants():
    source = """
    constant float table[] = {1, 2, 3.5, 4};
    constant constexpr int extent = 4;
    static constant float4 vector = float4(1, 2, 3, 4);
    constant float scalar = 0.5;
    struct Settings { int a; float b; };
    constant Settings settings = {7, 8.5};
    template <typename T> constant constexpr bool is_wide = sizeof(T) > 2;
    struct Limits { static constant constexpr int most = 11; static constexpr constant float half_of = 0.5f; };
    float first(constant float* p) { return p[0]; }
    float first(device float* p) { return -1; }
    kernel void k(device float* out) {
      float copy[extent];
      for (int i = 0; i < extent; ++i) copy[i] = table[i];
      out[0] = copy[2]; out[1] = vector.w; out[2] = scalar; out[3] = settings.a + settings.b;
      out[4] = is_wide<float>; out[5] = is_wide<half>; out[6] = Limits::most * Limits::half_of; out[7] = first(table);
      Settings local = settings; out[8] = local.b;
      constant Settings& reference = settings; constant float* pointer = table + 3; out[9] = reference.a + *pointer;
    }
    """
    assert run(source, count=10, threads=1, group_size=1) == [3.5, 4, 0.5, 15.5, 1, 0, 5.5, 1, 8.5, 11]


def test_a_kernel_needs_only_the_function_constants_that_it_reaches():
    source = """
    constant int size [[function_constant(0)]];
    constant int twice = size * 2;
    float helper(float x) { return x; }
    float sized(float x) { return x * twice; }
    kernel void without(device float* out) { float x = helper(2); out[0] = x; (void)x; }
    kernel void needs(device float* out) { out[0] = sized(2); }
    """
    library = simulator.compile_shader(PREFIX + source)
    out = torch.zeros(1, device="mps")
    library.without(out)
    assert out.item() == 2
    with pytest.raises(RuntimeError, match=r"'size' .* needs a value"):
        library.needs(out)


def test_forms_of_program_scope_constants():
    source = """
    struct Log {
      constant char* name; int level;
      constexpr Log(constant char* text, int n) constant : name(text), level(n) {}
      int first() const constant { return name[0] + level; }
    };
    constant Log logger("abc", 2);
    constant float braced[] {1, 2.5};
    constant int scalar = 7;
    template <int N> struct Table {};
    template <> struct Table<3> { static constant constexpr const float rows[2][2] = {{1, 2}, {3, 4}}; };
    constant constexpr const float Table<3>::rows[2][2];
    int referred(device float*, const constant int& n) { return n; }
    int text(constant char* s) { return s[1]; }
    kernel void k(device float* out) {
      int sized[scalar];
      sized[6] = referred(out, scalar);
      out[0] = logger.first(); out[1] = braced[1]; out[2] = Table<3>::rows[1][0]; out[3] = sized[6];
      out[4] = text("ab" "c");
    }
    """
    assert run(source, count=5, threads=1, group_size=1) == [ord("a") + 2, 2.5, 3, 7, ord("b")]


def test_address_spaces_choose_overloads_and_specialisations():
    source = """
    int f(device float*) { return 1; }
    int f(constant float*) { return 2; }
    int f(threadgroup float*) { return 3; }
    int f(thread float*) { return 4; }
    template <typename T> struct space { static constexpr constant int value = 0; };
    template <typename T> struct space<device T*> { static constexpr constant int value = 1; };
    template <typename T> struct space<threadgroup T*> { static constexpr constant int value = 3; };
    struct Holder { device float* p; float read() const { return p[1]; } };
    kernel void k(device float* out, constant float* c, device float* q) {
      threadgroup float t[1];
      float x;
      out[0] = f(out); out[1] = f(c); out[2] = f(t); out[3] = f(&x);
      out[4] = space<decltype(q)>::value; out[5] = space<threadgroup half*>::value;
      Holder holder{q}; out[6] = holder.read();
      device float& reference = out[7]; reference = 7;
    }
    """
    out = torch.zeros(8, device="mps")
    simulator.compile_shader(PREFIX + source).k(out, [1.0, 2.0], torch.tensor([5.0, 6.0], device="mps"), threads=1)
    assert out.tolist() == [1, 2, 3, 4, 1, 3, 6, 7]


def test_structs_with_methods():
    source = """
    struct Counter {
      int n;
      Counter(int start) : n(start) {}
      thread int& value() { return n; }
      int get() const thread { return n; }
      int get() const device { return n + 100; }
      int operator()(int x) { return n * x; }
    };
    struct Doubler { float operator()(float x) { return 2 * x; } };
    template <typename Op> float apply(float x) { return Op()(x); }
    float through(const thread float& x) { return x + 1; }
    kernel void k(device float* out, device Counter* counters) {
      Counter c(3);
      c.value() += 4;
      counters[0] = c;
      Counter copy = counters[0];
      out[0] = c.get(); out[1] = counters[0].get(); out[2] = copy(5);
      out[3] = apply<Doubler>(4); out[4] = through(2.0f * 3);
    }
    """
    out = torch.zeros(5, device="mps")
    simulator.compile_shader(PREFIX + source).k(out, torch.zeros(1, dtype=torch.int32, device="mps"), threads=1)
    assert out.tolist() == [7, 107, 35, 8, 7]


def test_templates_that_compare_and_choose():
    source = """
    template <typename T, metal::enable_if_t<sizeof(T) < 8, bool> = true> int small(T) { return 1; }
    template <typename T, metal::enable_if_t<(sizeof(T) >= 8), bool> = true> int small(T) { return 0; }
    template <int N, metal::enable_if_t<N < 3, int> = 0> int few() { return 1; }
    template <int N, metal::enable_if_t<(N > 2), int> = 0> int few() { return 0; }
    template <typename T> using Step = void (*)(thread T&, T);
    template <typename T> void add(thread T& x, T y) { x += y; }
    template <typename T, Step<T> step> T twice(T x) { step(x, x); return x; }
    template <typename T, T (*f)(T)> T apply(T x) { return f(x); }
    template <typename T> T next(T x) { return x + 1; }
    kernel void k(device float* out) {
      out[0] = small(1) + small(1l); out[1] = few<2>() + few<3>();
      out[2] = twice<float, add<float>>(3); out[3] = apply<int, next<int>>(4);
    }
    """
    assert run(source, count=4, threads=1, group_size=1) == [1, 1, 6, 5]


def test_objects_that_stand_for_integers():
    source = """
    template <typename T, T v> struct value_of {
      using type = T;
      constexpr operator type() const thread noexcept { return v; }
    };
    template <int v> using Int = value_of<int, v>;
    template <typename P, typename Step> float walk(P p, Step step, int n) {
      float sum = 0;
      for (int i = 0; i < n; i++, p += step) sum += *p;
      p -= step;
      return sum * 100 + *p;
    }
    template <int D> struct Nested {
      int depth;
      Nested<D - 1> inner;
      Nested(int d) thread : depth(d), inner(d - 1) {}
      int total() { return depth + inner.total(); }
    };
    template <> struct Nested<1> { int depth; Nested(int d) thread : depth(d) {} int total() { return depth; } };
    template <class A, class B> float sum(A a, B b) { return a + b; }
    kernel void k(device float* out) {
      for (int i = 0; i < 6; i++) out[i] = i;
      float by_object = walk(out, Int<2>{}, 3), by_number = walk(out + 1, 2, 2);
      Nested<3> nested(5);
      out[0] = by_object; out[1] = by_number; out[2] = nested.total(); out[3] = sum(1.5f, 2);
    }
    """
    assert run(source, count=4, threads=1, group_size=1) == [604, 403, 12, 3.5]


def test_temporaries_of_classes_are_objects():
    source = """
    struct S {
      int v;
      S operator+(S r) const { return {v + r.v}; }
      S operator-() const { return {-v}; }
      int get() const thread { return v; }
    };
    S f(int x) { return S{x}; }
    kernel void k(device float* out, device S* s) { out[0] = (f(1) + f(2)).v; out[1] = (-f(3)).v; out[2] = f(7).get(); }
    """
    out = torch.zeros(3, device="mps")
    simulator.compile_shader(PREFIX + source).k(out, torch.zeros(1, dtype=torch.int32, device="mps"), threads=1)
    assert out.tolist() == [3, -3, 7]


# --- Includes, line numbers, the program ------------------------------------------------------


def test_own_headers_are_included(tmp_path):
    (tmp_path / "scale.h").write_text("#pragma once\nconstant constexpr float kScale = 3;\n")
    source = tmp_path / "a.metal"
    source.write_text(
        '#include <metal_stdlib>\n#include "scale.h"\nkernel void k(device float* out) { out[0] = kScale; }\n'
    )
    library = simulator.load_metallib(compiler.compile(source, tmp_path / "a.metallib"))
    out = torch.zeros(1, device="mps")
    library.k(out)
    assert out.item() == 3


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (5, "  out[0] = undeclared;"),
        (5, "  float x = out;"),
        (5, "  float* p = &out[0];"),
        (5, "  double d = 1;"),
    ],
)
def test_errors_name_the_line_of_the_source(tmp_path, line, text):
    path = tmp_path / "broken.metal"
    path.write_text(PREFIX + "kernel void k(device float* out) {\n" + text + "\n}\n")
    with pytest.raises(CompileError, match=re.escape(f"broken.metal:{line}:")):
        compiler.compile(path, tmp_path / "x.metallib")
    with pytest.raises(CompileError, match="<source>:5:"):
        simulator.compile_shader(path.read_text())


def test_every_shader_of_the_library_compiles_as_a_program(tmp_path):
    root = Path(compiler.__file__).parents[1]
    source = tmp_path / "a.metal"
    source.write_text(PREFIX + "kernel void k(device float* out) { out[0] = 1; }\n")
    command = [sys.executable, "-m", "compiler", str(source), "-o", str(tmp_path / "a.metallib")]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    source.write_text("kernel void k(")
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error" in done.stderr
    assert "Traceback" not in done.stderr


# --- Refusals: what Apple's compiler does not take --------------------------------------------

ARGUMENTS = "device float* out, constant float* c, threadgroup float* t, uint i [[thread_position_in_grid]]"
KERNEL = f"kernel void k({ARGUMENTS})" + " {{ {} }}"

REFUSED = {
    "pointer without an address space": ("float f(float* p) { return *p; }", "must have an address space"),
    "reference without an address space": ("float f(const float& p) { return p; }", "must have an address space"),
    "local pointer without an address space": (KERNEL.format("float x; float* p = &x;"), "must have an address space"),
    "field without an address space": ("struct S { float* p; };", "must have an address space"),
    "device pointer as constant": (
        "float f(constant float* p); " + KERNEL.format("out[0] = f(out);"),
        "no matching function",
    ),
    "constant pointer as device": (
        "float f(device float* p); " + KERNEL.format("out[0] = f(c);"),
        "no matching function",
    ),
    "threadgroup pointer as device": (
        "float f(device float* p); " + KERNEL.format("out[0] = f(t);"),
        "no matching function",
    ),
    "thread pointer as device": (
        "float f(device float* p); " + KERNEL.format("float x = 0; out[0] = f(&x);"),
        "no matching function",
    ),
    "write to constant": (KERNEL.format("c[0] = 1;"), "cannot assign|read-only|not assignable"),
    "double": (KERNEL.format("double x = 1; out[0] = x;"), "double"),
    "long long": (KERNEL.format("long long x = 1; out[0] = x;"), "long long"),
    "new": (KERNEL.format("auto p = new float; out[0] = *p;"), "operator new"),
    "throw": (KERNEL.format("throw 1;"), "exceptions"),
    "try": (KERNEL.format("try { out[0] = 1; } catch (...) {}"), "exceptions"),
    "goto": (KERNEL.format("again: if (out[0] > 1) goto again;"), "goto"),
    "virtual": ("struct S { virtual float f() { return 1; } };", "virtual"),
    "dynamic_cast": (KERNEL.format("out[0] = dynamic_cast<float>(i);"), "dynamic_cast"),
    "thread_local": (KERNEL.format("thread_local float x = 1; out[0] = x;"), "thread_local"),
    "static local": (KERNEL.format("static int n = 0; out[0] = ++n;"), "static variable"),
    "lambda before Metal 3.2": (KERNEL.format("auto f = [](float x) { return x; }; out[0] = f(1);"), "lambdas need"),
    "program-scope variable": ("float x = 1;", "constant address space"),
    "program-scope device variable": ("device float x;", "constant address space"),
    "constant without a value": ("constant float x;", "needs an initialiser"),
    "function constant with a value": ("constant int x [[function_constant(0)]] = 1;", "cannot have an initialiser"),
    "defined of no function constant": (
        KERNEL.format("out[0] = is_function_constant_defined(i);"),
        "not a function constant",
    ),
    "threadgroup memory outside a kernel": ("void f() { threadgroup float x[4]; }", "only be declared in a kernel"),
    "kernel called by a kernel": (
        "kernel void a(device float* out) {} kernel void k(device float* out) { a(out); }",
        "kernel 'a' cannot be called",
    ),
    "long double literal": (KERNEL.format("out[0] = 1.0l;"), "long double"),
    "kernel that returns": ("kernel float k(device float* out) { return 1; }", "must return void"),
    "overloaded kernel": (
        "kernel void k(device float* out) {} kernel void k(device half* out) {}",
        "cannot be overloaded",
    ),
    "argument without a meaning": ("kernel void k(device float* out, float x) { out[0] = x; }", "kernel argument 'x'"),
    "argument in thread": ("kernel void k(thread float* x) {}", "kernel argument 'x'"),
    "unknown attribute": ("kernel void k(device float* out [[bufer(0)]]) {}", "bufer"),
    "index taken twice": (
        "kernel void k(device float* a [[buffer(1)]], device float* b [[buffer(1)]]) {}",
        "of one index",
    ),
    "index out of range": ("kernel void k(device float* a [[buffer(31)]]) {}", "not in 0..30"),
    "position of a wrong type": (
        "kernel void k(device float* a, int i [[thread_position_in_grid]]) {}",
        "position or size",
    ),
    "index of a wrong type": (
        "kernel void k(device float* a, uint2 i [[thread_index_in_simdgroup]]) {}",
        "index attribute",
    ),
    "positions of different sizes": (
        "kernel void k(uint2 a [[thread_position_in_grid]], uint3 b [[threadgroup_position_in_grid]]) {}",
        "same number of components",
    ),
    "instantiation of no kernel": (
        'template [[host_name("x")]] kernel void nothing<float>(device float*);',
        "not a kernel",
    ),
    "instantiation with another signature": (
        "template <typename T> kernel void f(device T* p) {} "
        'template [[host_name("x")]] kernel void f<float>(device half*);',
        "does not refer|error",
    ),
    "instantiation with too many arguments": (
        "template <typename T, int N = 1> kernel void f(device T* p) {} "
        'template [[host_name("x")]] [[kernel]] decltype(f<float, 1, 2>) f<float, 1, 2>;',
        "not a kernel template with these arguments",
    ),
    "instantiation that may be of two templates": (
        "template <int N> kernel void f(device float* p) {} "
        "template <int N, int M = 0> kernel void f(device half* p) {} "
        'template [[host_name("x")]] kernel void f<1>(device half* p);',
        "may be any of 2",
    ),
    "instantiation of a kernel that is no template": (
        'kernel void f(device float* p) {} template [[host_name("x")]] kernel void f<1>(device float* p);',
        "not a kernel template with these arguments",
    ),
    "unfinished declaration": ("constant float x", "ends inside a declaration"),
    "coherent before Metal 3.2": ("kernel void k(coherent(device) device float* p) {}", "coherent needs"),
    "text outside constant": ("void f(device char* s); " + KERNEL.format('f("a");'), "no matching function"),
    "call through another address space": (
        "struct S { int x; int get() { return x; } }; kernel void k(device S& s, device int* out) { *out = s.get(); }",
        "cannot initialize object parameter",
    ),
    "simdgroup_matrix of another size": (KERNEL.format("simdgroup_matrix<float, 4, 4> m;"), "8x8"),
    "simdgroup_matrix of int": (KERNEL.format("simdgroup_matrix<int, 8, 8> m;"), "element type"),
    "simd function of a bool": (KERNEL.format("out[0] = simd_sum(true);"), "no matching function"),
    "simd function of a long": (KERNEL.format("out[0] = simd_sum(long(i));"), "no matching function"),
    "bitwise simd function of a float": (KERNEL.format("out[0] = simd_xor(1.0f);"), "no matching function"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, tmp_path):
    source, message = REFUSED[name]
    with pytest.raises(CompileError, match=message) as refusal:
        compiler.compile(PREFIX + source, tmp_path / "x.metallib")
    assert "<source>:" in str(refusal.value)


def test_too_much_threadgroup_memory_is_refused_when_the_kernel_is_used():
    library = simulator.compile_shader(
        PREFIX
        + KERNEL.format("threadgroup float x[8193]; x[i] = 1; out[i] = x[0];").replace("threadgroup float* t,", "")
    )
    with pytest.raises(RuntimeError, match=r"32784.*32768"):
        library.k(torch.zeros(1, device="mps"), [1.0])


def test_lambdas_with_metal_3_2(tmp_path):
    source = PREFIX + "kernel void k(device float* out) { auto f = [](float x) { return x + 1; }; out[0] = f(1); }"
    library = simulator.load_metallib(compiler.compile(source, tmp_path / "x.metallib", std="metal3.2"))
    out = torch.zeros(1, device="mps")
    library.k(out)
    assert out.item() == 2


@pytest.mark.parametrize("option", [{"std": "metal9"}, {"math_mode": "quick"}])
def test_unknown_options_are_refused(option, tmp_path):
    with pytest.raises(CompileError, match=r"unknown .* one of"):
        compiler.compile(PREFIX, tmp_path / "x.metallib", **option)


def test_a_missing_source_is_named(tmp_path):
    with pytest.raises(CompileError, match=r"no such file: .*nowhere\.metal"):
        compiler.compile(tmp_path / "nowhere.metal", tmp_path / "x.metallib")


def test_what_two_sources_include_is_each_ones_own(tmp_path):
    """A function of a header reads the constants of the source that includes it, also after linking."""
    (tmp_path / "scale.h").write_text("template <typename T> [[clang::noinline]] T scale(T x) { return x * factor; }\n")
    objects = []
    for name, factor in (("twice", 2), ("thrice", 3)):
        source = tmp_path / f"{name}.metal"
        source.write_text(
            "#include <metal_stdlib>\nusing namespace metal;\n"
            f'constant float factor = {factor};\n#include "scale.h"\n'
            f"kernel void {name}(device float* x, uint i [[thread_position_in_grid]]) {{ x[i] = scale(x[i]); }}\n"
        )
        objects.append(tmp_path / f"{name}.o")
        clang.compile_object(source, objects[-1], includes=[tmp_path])
    clang.link(objects, tmp_path / "both.metallib")
    library = simulator.load_metallib(tmp_path / "both.metallib")
    x = torch.ones(4, device="mps")
    library.twice(x)
    library.thrice(x)
    assert x.cpu().tolist() == [6.0] * 4
