"""check() and profile() around the kernels: what a hostile kernel, a nested block and a failing script do to them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import mpskernels
from mpskernels import simulator

IMPORTABLE = {"PYTHONPATH": str(Path(mpskernels.__file__).parents[1])}  # in a process that runs elsewhere
PREFIX = "#include <metal_stdlib>\nusing namespace metal;\n"
RACE = "kernel void k(device float* x, uint i [[thread_position_in_grid]]) { x[i ^ 1] = x[i]; }"


def kernel(source):
    return simulator.compile_shader(PREFIX + source).k


def counts(source, *arguments, threads=32, group_size=32, **options):
    with simulator.profile() as found:
        kernel(source)(*arguments, threads=threads, group_size=group_size, **options)
    [dispatch] = found.dispatches
    return dispatch


def run_racing_kernel():
    kernel(RACE)(torch.ones(32, device="mps"), threads=32, group_size=32)


def test_fills_of_different_lengths_are_counted_each():
    source = """
    kernel void k(device ulong* y, uint i [[thread_position_in_grid]]) {
      device ulong* q = y + i * 32;
      for (uint j = 0; j < 32 - i % 32; ++j) q[j] = 0;
    }"""
    y = torch.zeros(993, dtype=torch.int64, device="mps")
    assert counts(source, y).device_written == 8 * sum(range(1, 33))


def test_pointers_chosen_from_two_buffers_are_counted_for_their_own():
    source = """
    kernel void k(device float* a, device float* b, uint i [[thread_position_in_grid]]) {
      device float* p = i & 1 ? a : b;
      p[i] += 1;
    }"""
    a, b = torch.zeros(32, device="mps"), torch.zeros(32, device="mps")
    found = counts(source, a, b)
    assert (found.device_read, found.device_read_unique, found.device_accesses) == (128, 128, 4)
    assert a.sum() == b.sum() == 16


@pytest.mark.parametrize("distance", [1 << 44, 1 << 47, 1 << 58, -(1 << 50)])
def test_an_access_very_far_away_is_a_finding(distance):
    source = "kernel void k(device float* x, constant long& distance) { x[distance] = 1; }"
    with simulator.check(report_only=True) as report:
        kernel(source)(torch.zeros(4, device="mps"), distance, threads=1, arg_casts={1: "int64"})
    assert [f.kind for f in report.findings] in (["bounds"], ["overflow"], ["null"])


def test_a_loop_that_runs_away_is_ended():
    source = """
    kernel void k(device float* x, constant uint& n) {
      for (uint j = 0; j < n - 1; ++j) x[j] = j;
    }"""
    with simulator.check(report_only=True) as report:
        kernel(source)(torch.zeros(4, device="mps"), 0, threads=1, arg_casts={1: "uint32"})
    [finding] = report.findings
    assert (finding.kind, finding.count) == ("bounds", 65536)


def test_shifts_of_vectors_are_checked():
    source = """
    kernel void k(device uint4* x, constant uint& n, uint i [[thread_position_in_grid]]) { x[i] = x[i] << uint4(n); }"""
    with simulator.check(report_only=True) as report:
        x = torch.ones(4, dtype=torch.int32, device="mps")
        kernel(source)(x, 33, threads=1, arg_casts={1: "uint32"})
    assert {f.kind for f in report.findings} == {"shift"}


@pytest.mark.parametrize(
    ("type_name", "operation", "field", "expected"),
    [
        ("half4", "x[i] * x[i]", "f16_flops", 128),
        ("bfloat4", "x[i] * x[i]", "f16_flops", 128),
        ("bfloat4", "x[i] * x[i]", "f32_flops", 0),
        ("bfloat", "x[i] * 3 - x[i]", "f16_flops", 64),
        ("bfloat", "bfloat(x[i] * 3.0f)", "f16_flops", 0),
        ("bfloat", "bfloat(x[i] * 3.0f)", "f32_flops", 32),
        ("float4", "x[i] + x[i]", "f32_flops", 128),
        ("float", "fma(x[i], 2.0f, 1.0f)", "f32_flops", 64),
        ("float", "rsqrt(x[i])", "special", 32),
        ("float", "rsqrt(x[i])", "f32_flops", 0),
        ("float", "exp(x[i])", "special", 32),
    ],
)
def test_operations_are_counted_once(type_name, operation, field, expected):
    source = f"kernel void k(device {type_name}* x, uint i [[thread_position_in_grid]]) {{ x[i] = {operation}; }}"
    dtype = torch.float32 if type_name.startswith("float") else torch.float16  # bfloat's bits matter to nobody here
    assert getattr(counts(source, torch.ones(128, dtype=dtype, device="mps")), field) == expected


def test_an_atomic_addition_of_floats_is_one():
    source = "kernel void k(device atomic_float* x) { atomic_fetch_add_explicit(x, 1.0f, memory_order_relaxed); }"
    x = torch.zeros(1, device="mps")
    found = counts(source, x, threads=640, group_size=64)
    assert (found.atomics, found.device_written, x.item()) == (640, 2560, 640)


@pytest.mark.parametrize(
    ("view", "index"),
    [
        (lambda x: x, "(2, 1)"),
        (lambda x: x.t(), "(0, 3)"),
        (lambda x: x[1:, ::2], "(1, 1)"),
        (lambda x: x[2, 1:2].expand(5, 1), "(0, 0)"),
        (lambda x: x[2, 1], "()"),
    ],
)
def test_the_first_element_that_was_not_stored(view, index):
    source = "kernel void k(device float* x, uint i [[thread_position_in_grid]]) { if (i < 9) x[i] = i; }"
    with simulator.check(report_only=True) as report:
        x = torch.empty(4, 4, device="mps")
        kernel(source)(x, threads=16)
        view(x).cpu()
    assert [f"the first at index {index}" in f.text for f in report.findings] == [True]


def test_memory_that_only_an_offset_completes_is_looked_at():
    source = """
    kernel void k(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  uint i [[thread_position_in_grid]]) { y[i] = x[i]; }"""
    with simulator.check(report_only=True) as report:
        x, y = torch.empty(200, device="mps"), torch.empty(100, device="mps")
        x[:100] = 1
        kernel(source)(x, y, threads=100)  # its values are there; not those of the whole buffer
        assert not report.findings
        x[101:] = 1
        kernel(source)(x[100:], y, threads=100)
    [finding] = report.findings
    assert (finding.kind, finding.count) == ("uninitialised", 1)


def test_banks_that_are_asked_very_often():
    source = """
    struct S { float a[256]; };
    kernel void k(device const S* q, device S* r, uint i [[thread_position_in_grid]]) {
      threadgroup S t[32];
      t[i] = q[i];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      r[i] = t[31 - i];
    }"""
    q, r = torch.ones(32 * 256, device="mps"), torch.empty(32 * 256, device="mps")
    assert counts(source, q, r).bank_cycles == 512


def test_a_block_within_a_block_leaves_the_findings_to_whom_they_belong():
    with simulator.check(report_only=True) as outer:
        run_racing_kernel()
        with simulator.check(report_only=True) as inner:
            pass
    assert inner.findings == []
    assert {f.kind for f in outer.findings} == {"race"}


def test_an_exception_gets_the_findings_as_a_note():
    with pytest.raises(KeyError) as error, simulator.check():  # noqa: PT012
        run_racing_kernel()
        raise KeyError("mine")
    assert "race in kernel k" in error.value.__notes__[0]


def test_counts_of_a_block_that_failed_are_not_the_next_ones():
    fault = kernel("kernel void k(device int* x) { x[0] = 1 / x[0]; }")
    with pytest.raises(RuntimeError, match="division"), simulator.profile():  # noqa: PT012
        fault(torch.zeros(1, dtype=torch.int32, device="mps"), threads=1)
        simulator._simulator.synchronize()
    with simulator.profile() as found:
        pass
    assert found.dispatches == []


@pytest.mark.parametrize("result", [lambda x: x.sum(), lambda x: x.reshape(2, 2).t(), lambda x: {"a": (x, x[::2])}])
def test_results_of_every_shape_are_compared(result):
    assert simulator.compare_schedules(lambda: result(torch.ones(4, device="mps")), seeds=[1]).findings == []


def test_a_process_that_is_checked_fails_at_its_end(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import torch, mpskernels
        from mpskernels import simulator
        k = simulator.compile_shader({PREFIX + RACE!r}).k
        k(torch.ones(32, device="mps"), threads=32, group_size=32)
        with simulator.check(report_only=True):
            pass
        print("done")
        """)
    )
    environment = {**os.environ, **IMPORTABLE, "MPSK_CHECK": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (1, "done\n")
    assert "race in kernel k" in done.stderr


def test_the_option_of_pytest_fails_tests_whose_kernels_race(tmp_path):
    test = tmp_path / "test_kernel.py"
    test.write_text(
        textwrap.dedent(f"""
        import pytest, torch
        from mpskernels import simulator
        k = simulator.compile_shader({PREFIX + RACE!r}).k

        def race():
            k(torch.ones(32, device="mps"), threads=32, group_size=32)

        @pytest.fixture
        def racing():
            race()

        def test_in_call():
            race()

        def test_in_setup(racing):
            pass
        """)
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mpskernels.pytest_plugin", "-p", "no:cacheprovider"]
    environment = {**os.environ, **IMPORTABLE}

    def run(*options):
        return subprocess.run(
            [*command, *options, str(test)], capture_output=True, text=True, cwd=tmp_path, env=environment
        ).stdout

    assert "1 failed, 1 error" in run("--mpsk-check")
    assert "2 passed" in run()
