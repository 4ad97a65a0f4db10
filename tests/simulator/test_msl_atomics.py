"""Atomic functions: many threads on one object, and what is refused."""

import pytest
import torch

from mpskernels.simulator import compile_shader
from mpskernels.simulator.compiler import CompileError, compile

THREADS, GROUP = 4096, 256

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void integers(device atomic_int* a, device atomic_uint* b, uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(&a[0], int(i) - 7, memory_order_relaxed);
  atomic_fetch_sub_explicit(&a[1], 3, memory_order_relaxed);
  atomic_fetch_max_explicit(&a[2], int(i * 31 % 4093), memory_order_relaxed);
  atomic_fetch_min_explicit(&a[3], -int(i), memory_order_relaxed);
  atomic_fetch_and_explicit(&b[0], ~(1u << i % 16), memory_order_relaxed);
  atomic_fetch_or_explicit(&b[1], 1u << i % 24, memory_order_relaxed);
  atomic_fetch_xor_explicit(&b[2], i, memory_order_relaxed);
  atomic_fetch_max_explicit(&b[3], 0x80000000u + i, memory_order_relaxed);
}

kernel void old_values(device atomic_uint* counter, device uint* seen) {
  seen[atomic_fetch_add_explicit(counter, 1u, memory_order_relaxed)] += 1;
}

kernel void floats(device atomic_float* a, uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(&a[0], 0.25f, memory_order_relaxed);
  atomic_fetch_sub_explicit(&a[1], 1.0f, memory_order_relaxed);
  float expected = atomic_load_explicit(&a[2], memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(&a[2], &expected, max(expected, float(i)), memory_order_relaxed,
                                                memory_order_relaxed)) {
  }
}

kernel void exchange(device atomic_int* chain, device int* order, uint i [[thread_position_in_grid]]) {
  order[i] = atomic_exchange_explicit(chain, int(i), memory_order_relaxed);
}

kernel void compare(device atomic_uint* a, device uint* out) {
  uint expected = 5;
  out[0] = atomic_compare_exchange_weak_explicit(a, &expected, 9u, memory_order_relaxed, memory_order_relaxed);
  out[1] = expected;
  expected = 7;
  out[2] = atomic_compare_exchange_weak_explicit(a, &expected, 9u, memory_order_relaxed, memory_order_relaxed);
  out[3] = atomic_load_explicit(a, memory_order_relaxed);
}

kernel void flags(device atomic_bool* flag, device int* out) {
  out[0] = atomic_exchange_explicit(flag, true, memory_order_relaxed);
  out[1] = atomic_load_explicit(flag, memory_order_relaxed);
  atomic_store_explicit(flag, false, memory_order_relaxed);
  out[2] = atomic_load_explicit(flag, memory_order_relaxed);
}

kernel void longs(device atomic_ulong* a, uint i [[thread_position_in_grid]]) {
  atomic_max_explicit(&a[0], 0x100000000ul + i, memory_order_relaxed);
  atomic_min_explicit(&a[1], 0x100000000ul + i, memory_order_relaxed);
}

kernel void in_threadgroup(device uint* out, uint i [[thread_position_in_grid]],
                           uint t [[thread_position_in_threadgroup]], uint g [[threadgroup_position_in_grid]]) {
  threadgroup atomic_uint sum;
  threadgroup atomic<int> least[2];
  if (t == 0) {
    atomic_store_explicit(&sum, 0u, memory_order_relaxed);
    atomic_store_explicit(&least[1], 0, memory_order_relaxed);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&sum, i, memory_order_relaxed);
  atomic_fetch_min_explicit(&least[1], -int(t), memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) {
    out[2 * g] = atomic_load_explicit(&sum, memory_order_relaxed);
    out[2 * g + 1] = uint(-atomic_load_explicit(&least[1], memory_order_relaxed));
  }
}

struct Shared {
  atomic_uint count;
  float4 rest;
};
kernel void member(device Shared* s, uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(&s->count, i & 1, memory_order_relaxed);
}
"""


@pytest.fixture(scope="module")
def library():
    return compile_shader(SOURCE)


def launch(kernel, *tensors, threads=THREADS):
    tensors = [t.to("mps") for t in tensors]
    kernel(*tensors, threads=threads, group_size=min(threads, GROUP))
    return [t.cpu() for t in tensors]


def test_integers(library):
    a, b = launch(library.integers, torch.zeros(4, dtype=torch.int32), torch.tensor([-1, 0, 0, 0], dtype=torch.int32))
    i = torch.arange(THREADS)
    assert a.tolist() == [int((i - 7).sum()), -3 * THREADS, int((i * 31 % 4093).max()), 1 - THREADS]
    assert [v & 0xFFFFFFFF for v in b.tolist()] == [0xFFFF0000, 0xFFFFFF, 0, 0x80000000 + THREADS - 1]


def test_old_values_are_all_different(library):
    counter, seen = launch(
        library.old_values, torch.zeros(1, dtype=torch.int32), torch.zeros(THREADS, dtype=torch.int32)
    )
    assert counter.item() == THREADS
    assert (seen == 1).all()


def test_floats(library):
    (a,) = launch(library.floats, torch.tensor([1.0, 0.0, -5.0]))
    assert a.tolist() == [1 + 0.25 * THREADS, -THREADS, THREADS - 1]


def test_exchange(library):
    chain, order = launch(
        library.exchange, torch.tensor([-1], dtype=torch.int32), torch.zeros(THREADS, dtype=torch.int32)
    )
    assert sorted([*order.tolist(), chain.item()]) == list(range(-1, THREADS))


def test_compare_exchange(library):
    _, out = launch(library.compare, torch.tensor([7], dtype=torch.int32), torch.zeros(4, dtype=torch.int32), threads=1)
    assert out.tolist() == [0, 7, 1, 9]


def test_bool(library):
    _, out = launch(library.flags, torch.zeros(4, dtype=torch.bool), torch.zeros(3, dtype=torch.int32), threads=1)
    assert out.tolist() == [0, 1, 0]


def test_ulong(library):
    (a,) = launch(library.longs, torch.tensor([0, -1]))
    assert a.tolist() == [0x100000000 + THREADS - 1, 0x100000000]


def test_threadgroup(library):
    (out,) = launch(library.in_threadgroup, torch.zeros(2 * THREADS // GROUP, dtype=torch.int32))
    for g, (total, least) in enumerate(out.view(-1, 2).tolist()):
        assert total == sum(range(g * GROUP, (g + 1) * GROUP))
        assert least == GROUP - 1


def test_member_of_struct(library):
    (s,) = launch(library.member, torch.zeros(8, dtype=torch.int32))
    assert s[0] == THREADS // 2


# name -> (arguments, statement, part of the message)
REFUSED = {
    "threadgroup_float": (
        "threadgroup atomic_float* a",
        "atomic_fetch_add_explicit(a, 1.0f, memory_order_relaxed);",
        "",
    ),
    "threadgroup_float_load": ("threadgroup atomic_float* a", "atomic_load_explicit(a, memory_order_relaxed);", ""),
    "float_max": ("device atomic_float* a", "atomic_fetch_max_explicit(a, 1.0f, memory_order_relaxed);", "no matching"),
    "bool_add": ("device atomic_bool* a", "atomic_fetch_add_explicit(a, true, memory_order_relaxed);", "no matching"),
    "ulong_add": ("device atomic_ulong* a", "atomic_fetch_add_explicit(a, 1ul, memory_order_relaxed);", "no matching"),
    "threadgroup_ulong": (
        "threadgroup atomic_ulong* a",
        "atomic_max_explicit(a, 1ul, memory_order_relaxed);",
        "no matching",
    ),
    "ulong_max_has_no_value": (
        "device atomic_ulong* a",
        "ulong v = atomic_max_explicit(a, 1ul, memory_order_relaxed);",
        "void",
    ),
    "order": (
        "device atomic_int* a",
        "atomic_fetch_add_explicit(a, 1, memory_order_seq_cst);",
        "memory_order_relaxed only",
    ),
    "acquire": ("device atomic_int* a", "atomic_load_explicit(a, memory_order_acquire);", "memory_order_acquire"),
    "plain_object": ("device int* a", "atomic_fetch_add_explicit(a, 1, memory_order_relaxed);", "no matching"),
    "constant_object": ("constant atomic_int* a", "atomic_load_explicit(a, memory_order_relaxed);", "no matching"),
    "plain_read": ("device atomic_int* a", "int v = *a;", "no viable conversion"),
    "plain_write": ("device atomic_int* a", "*a = 1;", "no viable overloaded '='"),
    "copy": ("device atomic_int* a", "atomic_int b = *a;", "deleted"),
    "strong": (
        "device atomic_int* a",
        "int e = 0; atomic_compare_exchange_strong_explicit(a, &e, 1, memory_order_relaxed, memory_order_relaxed);",
        "atomic_compare_exchange_strong_explicit",
    ),
    "element": ("device atomic<short>* a", "atomic_load_explicit(a, memory_order_relaxed);", "atomic<T> exists for"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(tmp_path, name):
    arguments, statement, message = REFUSED[name]
    source = f"#include <metal_stdlib>\nusing namespace metal;\nkernel void k({arguments}) {{\n{statement}\n}}\n"
    with pytest.raises(CompileError) as error:
        compile(source, tmp_path / "out.metallib", name="kernel.metal")
    assert message in str(error.value)
    assert "kernel.metal:4" in str(error.value)
