"""How the software device executes threads: simd and quad functions, barriers, divergence, matrices, faults."""

import functools
import operator
import os
import subprocess
import sys
import threading

import pytest
import torch

from mpskernels import simulator
from mpskernels.simulator import compiler

simulator.enable()

PREFIX = "#include <metal_stdlib>\nusing namespace metal;\n"
LANE = "uint lane [[thread_index_in_simdgroup]], uint i [[thread_position_in_grid]]"
LANE += ", uint t [[thread_index_in_threadgroup]]"


def run(body, count=32, dtype=torch.float32, group_size=None, before=""):
    """What `count` threads write to out[i]."""
    out = torch.full((count,), -1, dtype=dtype, device="mps")
    source = f"{PREFIX}{before}\nkernel void k(device {METAL[dtype]}* out, {LANE}) {{ {body} }}"
    simulator.compile_shader(source).k(out, threads=count, group_size=group_size or count)
    return out.cpu().tolist()


METAL = {torch.float32: "float", torch.int32: "int", torch.float16: "half"}

# --- simd and quad functions -------------------------------------------------------------------


def scanned(values, op, inclusive, start):
    result, total = [], start
    for value in values:
        before, total = total, op(total, value)
        result.append(total if inclusive else before)
    return result


N = list(range(32))
SIMD = {
    "simd_sum(x)": [sum(N)] * 32,
    "simd_min(x)": [0] * 32,
    "simd_max(x)": [31] * 32,
    "simd_product(x % 3 + 1)": [6**10 * 1 * 2 % 2**32] * 32,
    "simd_and(x | 64)": [64] * 32,
    "simd_or(x)": [31] * 32,
    "simd_xor(x * x)": [functools.reduce(operator.xor, [n * n for n in N])] * 32,
    "simd_prefix_inclusive_sum(x)": scanned(N, lambda a, b: a + b, True, 0),
    "simd_prefix_exclusive_sum(x)": scanned(N, lambda a, b: a + b, False, 0),
    "simd_prefix_inclusive_product(x % 2 + 1)": scanned([n % 2 + 1 for n in N], lambda a, b: a * b, True, 1),
    "simd_prefix_exclusive_product(x % 2 + 1)": scanned([n % 2 + 1 for n in N], lambda a, b: a * b, False, 1),
    "simd_broadcast(x * 2, 5)": [10] * 32,
    "simd_broadcast_first(x + 7)": [7] * 32,
    "simd_shuffle(x, (x + 3) % 32)": [(n + 3) % 32 for n in N],
    "simd_shuffle_xor(x, 5)": [n ^ 5 for n in N],
    "simd_shuffle_up(x, 3)": [n - 3 if n >= 3 else n for n in N],
    "simd_shuffle_down(x, 3)": [n + 3 if n < 29 else n for n in N],
    "simd_shuffle_rotate_up(x, 3)": [(n - 3) % 32 for n in N],
    "simd_shuffle_rotate_down(x, 3)": [(n + 3) % 32 for n in N],
    "simd_shuffle_and_fill_up(x, x + 100, 3)": [n - 3 if n >= 3 else 100 + n + 29 for n in N],
    "simd_shuffle_and_fill_down(x, x + 100, 3)": [n + 3 if n < 29 else 100 + n - 29 for n in N],
    "simd_shuffle_and_fill_down(x, x + 100, 3, 8)": [n + 3 if n % 8 < 5 else 100 + n - 5 for n in N],
    "simd_shuffle_and_fill_up(x, x + 100, 3, 8)": [n - 3 if n % 8 >= 3 else 100 + n + 5 for n in N],
    "simd_all(x < 32) * 2 + simd_all(x < 31)": [2] * 32,
    "simd_any(x == 31) * 2 + simd_any(x > 31)": [2] * 32,
    "int(ulong(simd_ballot(x % 2 == 1)) & 0xff)": [0xAA] * 32,
    "simd_is_first()": [1] + [0] * 31,
    "popcount(uint(ulong(simd_active_threads_mask())))": [32] * 32,
    "quad_sum(x)": [sum(range(n // 4 * 4, n // 4 * 4 + 4)) for n in N],
    "quad_max(x)": [n // 4 * 4 + 3 for n in N],
    "quad_prefix_exclusive_sum(x)": [sum(range(n // 4 * 4, n)) for n in N],
    "quad_broadcast(x, 2)": [n // 4 * 4 + 2 for n in N],
    "quad_broadcast_first(x)": [n // 4 * 4 for n in N],
    "quad_shuffle_xor(x, 1)": [n ^ 1 for n in N],
    "quad_shuffle_up(x, 1)": [n - 1 if n % 4 else n for n in N],
    "quad_shuffle_rotate_down(x, 1)": [n // 4 * 4 + (n + 1) % 4 for n in N],
    "quad_all(x < 4) + quad_any(x == 5) * 2": [1] * 4 + [2] * 4 + [0] * 24,
    "int(ulong(quad_ballot(x % 4 == 2)))": [4] * 32,
}


def test_simd_and_quad_functions():
    names = list(SIMD)
    lines = "".join(f"out[{k} * 32 + lane] = int({expression});\n" for k, expression in enumerate(names))
    out = torch.full((len(names), 32), -1, dtype=torch.int32, device="mps")
    source = f"{PREFIX}kernel void k(device int* out, {LANE}) {{ int x = int(lane); {lines} }}"
    simulator.compile_shader(source).k(out, threads=32, group_size=32)
    got = dict(zip(names, out.cpu().tolist(), strict=True))
    # 32-bit products wrap.
    expected = {name: [(v + 2**31) % 2**32 - 2**31 for v in values] for name, values in SIMD.items()}
    assert got == expected


@pytest.mark.parametrize("scalar", ["half", "bfloat", "float", "char", "uchar", "short", "ushort", "int", "uint"])
def test_simd_functions_of_every_type(scalar):
    body = f"""
      {scalar} x = {scalar}(lane % 4);
      vec<{scalar}, 2> v = vec<{scalar}, 2>(x, {scalar}(1));
      auto s = simd_sum(v);
      out[i] = float(s.x) * 100 + float(s.y) + float(simd_shuffle_xor(v, 1).x) * 10000 + float(simd_max(x)) * 100000
               + float(simd_min(v).y) - 1;
    """
    assert run(body) == [48 * 100 + 32 + (n % 4 ^ 1) * 10000 + 300000 for n in N]


def test_simd_functions_cover_the_lanes_that_reach_them():
    body = """
      float v = 0;
      if (lane < 10) { v = simd_sum(1.0f); } else if (lane % 2) { v = simd_sum(10.0f); }
      out[i] = v + simd_sum(1.0f) * 1000;
    """
    odd = sum(n % 2 for n in range(10, 32)) * 10
    assert run(body) == [32000 + (10 if n < 10 else odd if n % 2 else 0) for n in N]


def test_lanes_leave_a_loop_at_different_times():
    body = """
      float total = 0;
      for (uint k = 0; k <= lane; ++k) total += simd_sum(1.0f);
      out[i] = total * 100 + simd_sum(1.0f);
    """
    assert run(body) == [sum(32 - k for k in range(n + 1)) * 100 + 32 for n in N]


# Lanes that a branch has parted meet again behind it. A text, and its simd_sums in order: a name, the value that each
# lane brings, and whether lane i reaches it in round j.
DIVERGENT = {
    "guarded": (
        "for (int j = 0; j < n; ++j) if ((int(i) + j) & 1) r += simd_sum(1.0f);",
        [("a", 1, lambda j, i: i + j & 1)],
    ),
    "guarded, then all": (
        "for (int j = 0; j < n; ++j) { if ((int(i) + j) & 1) r += simd_sum(1.0f); r += simd_sum(10.0f); }",
        [("a", 1, lambda j, i: i + j & 1), ("b", 10, lambda j, i: True)],
    ),
    "by eights": (
        "for (int j = 0; j < n; ++j) if ((int(i / 8) + j) & 1) r += simd_sum(1.0f);",
        [("a", 1, lambda j, i: i // 8 + j & 1)],
    ),
    "continue": (
        "for (int j = 0; j < n; ++j) { if (int(i) % 4 == j) continue; r += simd_sum(1.0f); }",
        [("a", 1, lambda j, i: i % 4 != j)],
    ),
    "continue in while": (
        "int j = 0; while (j < n) { ++j; if ((int(i) + j) & 1) continue; r += simd_sum(1.0f); }",
        [("a", 1, lambda j, i: i + j + 1 & 1 == 0)],
    ),
    "continue in do": (
        "int j = 0; do { ++j; if ((int(i) + j) & 1) continue; r += simd_sum(1.0f); } while (j < n);",
        [("a", 1, lambda j, i: i + j + 1 & 1 == 0)],
    ),
    "nested, with break": (
        "for (int j = 0; j < n; ++j) { for (int m = 0; m < 2; ++m) { if (int(i) % 8 <= m) break; r += simd_sum(1.0f); }"
        " r += simd_sum(100.0f); }",
        [("m0", 1, lambda j, i: i % 8 > 0), ("m1", 1, lambda j, i: i % 8 > 1), ("b", 100, lambda j, i: True)],
    ),
    "a barrier after a guard": (
        "threadgroup float s[32]; for (int j = 0; j < n; ++j) { if ((int(i) + j) & 1) r += simd_sum(1.0f);"
        " simdgroup_barrier(mem_flags::mem_threadgroup); s[lane] = r; } r = s[lane];",
        [("a", 1, lambda j, i: i + j & 1)],
    ),
    "switch": (
        "for (int j = 0; j < n; ++j) switch ((i + j) % 3) { case 0: r += simd_sum(1.0f); break;"
        " case 1: r += simd_sum(10.0f); default: r += simd_sum(100.0f); }",
        [
            ("a", 1, lambda j, i: (i + j) % 3 == 0),
            ("b", 10, lambda j, i: (i + j) % 3 == 1),
            ("c", 100, lambda j, i: (i + j) % 3 != 0),
        ],
    ),
    "an unlikely branch": (
        "for (int j = 0; j < n; ++j) { if (__builtin_expect(i & 1, 0)) r += simd_sum(1.0f); else r += simd_sum(2.0f);"
        " r += simd_sum(100.0f); }",
        [("a", 1, lambda j, i: i & 1), ("b", 2, lambda j, i: not i & 1), ("c", 100, lambda j, i: True)],
    ),
    "one function called from two places": (
        "for (int j = 0; j < n; ++j) { if (i < 10) r += f(1); else r += f(2) + 1000; }",
        [("a", 1, lambda j, i: i < 10), ("b", 2, lambda j, i: i >= 10)],
    ),
    "an argument for some": (
        "for (int j = 0; j < n; ++j) r += more(((int(i) + j) & 1) ? simd_sum(1.0f) : 0.0f);",
        [("a", 1, lambda j, i: i + j & 1)],
    ),
    "a method, guarded inside": (
        "Adder adder{n}; for (int j = 0; j < n; ++j) r += ::more(adder.add(int(i) + j));",
        [("a", 1, lambda j, i: i + j & 1)],
    ),
}


@pytest.mark.parametrize("name", DIVERGENT)
def test_divergent_lanes_meet_again(name):
    text, operations = DIVERGENT[name]
    rounds = 4
    before = """
      __attribute__((noinline)) float f(float x) { return simd_sum(x); }
      struct Adder { int n; float add(int k) const { if (k & 1) return ::metal::simd_sum(1.0f); return 0; } };
      float more(float x) { return simd_shuffle_xor(simd_shuffle_xor(x, 1), 1); }
    """
    body = f"float r = 0; {text} out[i] = r;"
    source = f"{PREFIX}{before} kernel void k(device float* out, constant int& n, {LANE}) {{ {body} }}"
    out = torch.zeros(32, device="mps")
    simulator.compile_shader(source).k(out, rounds, threads=32, group_size=32)
    expected = [0.0] * 32
    for j in range(rounds):
        for _, value, reaches in operations:
            lanes = [i for i in N if reaches(j, i)]
            for i in lanes:
                expected[i] += value * len(lanes)
    if name == "one function called from two places":
        expected = [e + (1000 * rounds if i >= 10 else 0) for i, e in enumerate(expected)]
    assert out.tolist() == expected


def test_lanes_that_return_early_take_no_part():
    body = "if (lane >= 20) return; out[i] = simd_sum(1.0f); threadgroup_barrier(mem_flags::mem_device);"
    body += "out[i] += simd_sum(1.0f);"
    assert run(body) == [40] * 20 + [-1] * 12


def test_partial_simdgroup():
    assert run("out[i] = simd_sum(1.0f);", count=40) == [32] * 32 + [8] * 8


# --- Barriers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 31, 32, 33, 256, 1000, 1024])
def test_threadgroup_barriers_order_threadgroup_memory(threads):
    body = """
      threadgroup float a[1024];
      float x = t;
      for (int round = 0; round < 3; ++round) {
        a[t] = x;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        x = a[(t + 1) % %d];
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      out[i] = x;
    """.replace("%d", str(threads))
    assert run(body, count=threads) == [(n + 3) % threads for n in range(threads)]


def test_simdgroup_barrier_orders_lanes():
    body = (
        "threadgroup float a[32]; a[lane] = lane; simdgroup_barrier(mem_flags::mem_threadgroup); out[i] = a[31 - lane];"
    )
    assert run(body) == N[::-1]


FAULTS = {
    "barriers of two branches": (
        "if (lane < 16) { threadgroup_barrier(mem_flags::mem_none); out[i] = 1; }"
        " else { out[i] = 2; threadgroup_barrier(mem_flags::mem_none); out[i] = 3; }",
        "divergent threadgroup_barrier.*different barriers",
    ),
    "one barrier by two ways": (
        "if (lane < 16) { wait(); out[i] = 1; } else { out[i] = 2; wait(); out[i] = 3; }",
        "divergent threadgroup_barrier.*different barriers",
    ),
    "simdgroup barrier for some": (
        "if (lane < 16) simdgroup_barrier(mem_flags::mem_threadgroup);"
        " threadgroup_barrier(mem_flags::mem_none); out[i] = 1;",
        "simdgroup_barrier reached by lanes 0-15 of the live lanes 0-31",
    ),
    "shuffle from an inactive lane": ("if (lane < 16) out[i] = simd_shuffle_xor(lane, 16);", "inactive lane"),
    "shuffle from no lane": ("out[i] = simd_shuffle(lane, lane + 1);", "outside the group"),
    "quad shuffle out of the quad": ("out[i] = quad_shuffle(lane, 4);", "outside the group"),
    "matrix for some lanes": (
        "simdgroup_float8x8 m(1); if (lane < 16) out[i] = m.thread_elements()[0];",
        "needs all 32 lanes",
    ),
    "a private array that is too large": (
        "float a[100000]; for (uint j = 0; j < 100000; ++j) a[j] = out[j % 32]; out[i] = a[uint(out[0]) + 99999 - i];",
        "needs more than 256 KB of private memory",
    ),
    "a private array of which little is used": (
        "volatile float a[100000]; a[i] = 1.0f; out[i] = a[i];",
        "needs more than 256 KB of private memory",
    ),
    "recursion without an end": ("out[i] = endless(i);", "needs more than 256 KB of private memory"),
    "an address that does not exist": ("out[ulong(1) << 50] = 1;", "memory that does not exist"),
    "a null pointer": ("device float* p = nullptr; out[i] = p[i];", "memory that does not exist"),
    "integer division by zero": ("out[i] = int(i) / (int(i) - 7);", "integer division by zero"),
    "integer remainder by zero": ("out[i] = int(i) % (int(i) - 7);", "integer division by zero"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_reports_and_lives_on(name):
    body, message = FAULTS[name]
    before = """
      __attribute__((noinline)) int endless(int n) { return n > 1000000000 ? n : endless(n + 1) * 3 + n; }
      __attribute__((noinline)) void wait() { threadgroup_barrier(mem_flags::mem_none); }
    """
    with pytest.raises(RuntimeError, match=message) as fault:
        run(body, before=before)
    assert "kernel k: " in str(fault.value)
    assert "thread (" in str(fault.value)
    assert run("out[i] = simd_sum(lane);") == [sum(N)] * 32


# --- simdgroup_matrix --------------------------------------------------------------------------

DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat": torch.bfloat16}


@pytest.mark.parametrize("a_type", DTYPES)
@pytest.mark.parametrize("d_type", DTYPES)
def test_matrix_product_of_mixed_types(a_type, d_type):
    source = f"""{PREFIX}
    kernel void k(device {a_type}* a, device {a_type}* b, device {d_type}* d) {{
      simdgroup_matrix<{a_type}, 8, 8> x, y;
      simdgroup_matrix<{d_type}, 8, 8> z = make_filled_simdgroup_matrix<{d_type}, 8, 8>({d_type}(0.5f));
      simdgroup_load(x, a, 12, ulong2(2, 1));
      simdgroup_load(y, b, 8, ulong2(0, 0), true);
      simdgroup_multiply_accumulate(z, x, y, z);
      simdgroup_store(z, d, 9, ulong2(1, 0), true);
    }}"""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(10, 12, generator=generator).to(DTYPES[a_type])
    b = torch.randn(8, 8, generator=generator).to(DTYPES[a_type])
    d = torch.zeros(8, 9, dtype=DTYPES[d_type], device="mps")
    simulator.compile_shader(source).k(a.to("mps"), b.to("mps"), d, threads=32, group_size=32)
    exact = a[1:9, 2:10].double() @ b.double().T + 0.5
    error = (d.cpu()[:, 1:].double().T - exact).abs().max() / exact.abs().max()
    assert error <= {"float": 2**-22, "half": 2**-11, "bfloat": 2**-8}[d_type]
    assert d.cpu()[:, 0].abs().max() == 0


def test_matrix_elements_belong_to_their_lanes():
    body = """
      threadgroup float source[64], product[64];
      source[lane] = lane; source[lane + 32] = lane + 32;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      simdgroup_float8x8 m, identity(1.0f);
      simdgroup_load(m, source, 8);
      thread float2& mine = m.thread_elements();
      out[i] = mine.x;
      mine = mine * 2;
      m.thread_elements()[1] += 1;
      simdgroup_multiply(m, identity, m);
      simdgroup_store(m, product, 8);
      threadgroup_barrier(mem_flags::mem_threadgroup);
      uint row = ((lane >> 1) & 3) | ((lane >> 4) & 1) << 2, column = (lane & 1) << 1 | ((lane >> 3) & 1) << 2;
      out[i] += 1000 * product[row * 8 + column] + 1000000 * product[row * 8 + column + 1];
    """
    expected = []
    for lane in N:
        row = ((lane >> 1) & 3) | ((lane >> 4) & 1) << 2
        column = (lane & 1) << 1 | ((lane >> 3) & 1) << 2
        at = row * 8 + column
        expected.append(at + 2000 * at + 1000000 * (2 * (at + 1) + 1))
    out = torch.zeros(32, dtype=torch.int32, device="mps")
    body = body.replace("000 *", "000 * (int)")
    source = f"{PREFIX}kernel void k(device int* out, {LANE}) {{ {body} }}"
    simulator.compile_shader(source).k(out, threads=32, group_size=32)
    assert out.tolist() == expected


# --- Numbers -----------------------------------------------------------------------------------


def test_float_denormals_are_flushed_and_half_ones_kept():
    tiny = torch.tensor([1e-40, 2**-24, 1.5], device="mps")
    out = torch.full((2,), -1.0, device="mps")
    source = PREFIX + "kernel void k(device float* x, device float* out) { out[0] = x[0] * x[2]; out[1] = half(x[1]); }"
    simulator.compile_shader(source).k(tiny, out, threads=1)
    assert out.tolist() == [0, 2**-24]


# --- The device as a whole ---------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_workers():
    source = f"""{PREFIX}kernel void k(device float* out, {LANE}) {{
      threadgroup float s[8];
      float x = simd_sum(sin(float(i)));
      if (lane == 0) s[t / 32] = x;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      out[i] = s[(t / 32 + 1) % 8] + i;
    }}"""
    program = (
        "import torch; from mpskernels import simulator; out = torch.zeros(5120, device='mps');"
        f"simulator.compile_shader({source!r}).k(out, threads=5120, group_size=256);"
        "print(out.cpu().view(torch.int32).sum().item())"
    )
    answers = set()
    for threads in ("1", "2", "7"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            env={**os.environ, "MPSK_THREADS": threads},
        )
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout)
    assert len(answers) == 1


def test_python_threads_launch_at_once():
    source = (
        PREFIX
        + "kernel void k(device float* out, constant float& v, uint i [[thread_position_in_grid]]) { out[i] = v; }"
    )
    library = simulator.compile_shader(source)
    wrong = []

    def work(value):
        for _ in range(20):
            out = torch.zeros(100, device="mps")
            library.k(out, float(value))
            if not bool((out.cpu() == value).all()):
                wrong.append(value)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


# --- metallibs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metallib(tmp_path_factory):
    path = tmp_path_factory.mktemp("metallib") / "good.metallib"
    return compiler.compile(PREFIX + "kernel void k(device float* out) { out[0] = 1; }", path)


BROKEN = {
    "missing": (None, "does not exist"),
    "empty": (lambda b: b"", "not a metallib"),
    "text": (lambda b: b"hello, world" * 100, "not a metallib"),
    "truncated": (lambda b: b[: len(b) // 2], "truncated"),
    "without its last byte": (lambda b: b[:-1], "truncated"),
    "altered": (lambda b: b[:900] + bytes([b[900] ^ 1]) + b[901:], "damaged"),
    "of another version": (lambda b: b[:-16] + (999).to_bytes(4, "little") + b[-12:], "version 999"),
    "of Apple's compiler": (lambda b: b"MTLB" + b[4:], "Apple"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_a_metallib(name, metallib, tmp_path):
    change, message = BROKEN[name]
    path = tmp_path / "broken.metallib"
    if change:
        path.write_bytes(change(metallib.read_bytes()))
    with pytest.raises(RuntimeError, match=message) as refusal:
        simulator.load_metallib(path)
    assert "broken.metallib" in str(refusal.value)
    assert "k" in dir(simulator.load_metallib(metallib))


def test_a_recompiled_metallib_replaces_the_one_before(tmp_path):
    path = tmp_path / "a.metallib"
    libraries = []
    for value in (1, 2, 3):
        compiler.compile(f"{PREFIX}kernel void k(device float* out) {{ out[0] = {value}; }}", path)
        libraries.append(simulator.load_metallib(path))
    for value, library in zip((1, 2, 3), libraries, strict=True):
        out = torch.zeros(1, device="mps")
        library.k(out)
        assert out.item() == value


@pytest.mark.parametrize("math_mode", ["fast", "relaxed", "safe"])
def test_functions_honour_infinities_in_every_math_mode(math_mode, tmp_path):
    source = f"""{PREFIX}kernel void k(device float* out, device const float* x) {{
      out[0] = precise::rsqrt(x[0]); out[1] = rsqrt(x[0]); out[2] = precise::exp(-x[0]); out[3] = precise::tanh(x[0]);
      out[4] = max(x[0], 1.0f);
    }}"""
    library = simulator.load_metallib(compiler.compile(source, tmp_path / "a.metallib", math_mode=math_mode))
    out = torch.full((5,), -1.0, device="mps")
    library.k(out, torch.tensor([float("inf")], device="mps"), threads=1)
    assert out.tolist() == [0, 0, 0, 1, float("inf")]
