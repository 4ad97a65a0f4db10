"""The checker against kernels with one planted fault each: it finds every fault, and nothing in the repaired twins.

A file of `faults/` holds a template of which the kernel `fault` has the fault and the kernel `repaired` has not; in
files `clean_*` there is a kernel `clean`, which only looks suspicious. Marks in a file say what is to be found:

    // fault: KIND [SCOPE][, NAME]     on this line, in the buffer or threadgroup array NAME
    // fault: other                    the line of a race's other access, or one more where the fault may be seen

`LAUNCHES` says how the kernels are called and what the right results are.
"""

import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mpskernels import simulator

simulator.enable()

FOLDER = Path(__file__).parent / "faults"
NAMES = sorted(path.stem for path in FOLDER.glob("*.metal"))
FAULTS = [name for name in NAMES if not name.startswith("clean_")]
SEEDS = [None, 5]  # of schedules


# Arguments of kernels, besides input tensors and numbers -----------------------------------------


@dataclass
class Output:
    """An output and what the right kernels leave in it. Without `start` its memory comes as the allocator gives it."""

    expected: Tensor
    start: Tensor | None = None


@dataclass
class Scratch:
    """Memory as the allocator gives it, at which nobody looks afterwards."""

    count: int


@dataclass
class Behind:
    """An input that is bound from its element `offset` on."""

    tensor: Tensor
    offset: int


@dataclass
class Same:
    """The tensor of argument `index`, bound once more, from its element `offset` on."""

    index: int
    offset: int = 0


@dataclass
class Launch:
    arguments: tuple
    threads: int | tuple[int, ...]
    group: int | tuple[int, ...]
    repeat: int = 1

    def bind(self):
        bound = []
        for argument in self.arguments:
            match argument:
                case Output(expected, None):
                    argument = torch.empty_like(expected, device="mps")
                case Output(_, start):
                    argument = start.to("mps")
                case Scratch(count):
                    argument = torch.empty(count, device="mps")
                case Behind(tensor, offset):
                    argument = tensor.to("mps")[offset:]
                case Same(index, offset):
                    argument = bound[index][offset:]
                case Tensor():
                    argument = argument.to("mps")
            bound.append(argument)
        return bound

    def run(self, kernel):
        """(what an output holds, what it should hold), of each output."""
        bound = self.bind()
        for _ in range(self.repeat):
            kernel(*bound, threads=self.threads, group_size=self.group)
        torch.mps.synchronize()
        pairs = zip(bound, self.arguments, strict=True)
        return [(tensor.cpu(), output.expected) for tensor, output in pairs if isinstance(output, Output)]


def launch(*arguments, threads, group, repeat=1):
    return Launch(arguments, threads, group, repeat)


def ramp(*shape):
    """1, 2, 3, ...: small whole numbers, so that sums are exact in any order."""
    return torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float32).view(shape)


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def iota(n, dtype=torch.int32):
    return torch.arange(n, dtype=dtype)


X32, X64, X128, X256 = ramp(32), ramp(64), ramp(128), ramp(256)
SIGNED = torch.where(iota(64) % 3 == 0, -X64, X64)
PAIRS = X64.view(-1, 2).flip(1).flatten()
SWAPPED = X64.view(2, 32).flip(0).flatten()
LANES_TWICE = iota(32).repeat(2)
ROWS = ints(0, 3, 4096, 4097)
FAR_ROWS = torch.tensor([1.0, -1, -1, -1])


def rotated(x, by):
    return torch.roll(x, -by)


def blurred():
    x = X64
    for _ in range(2):
        x = x + rotated(x, 32)
    return rotated(x, 32)


def mixed(rounds):
    x = X64
    for _ in range(rounds):
        x = x + x.view(2, 32).flip(0).flatten()
    return x


def grown(lengths):
    """divergence_loop: each round adds what the partner has, for as many rounds as the thread's length."""
    x = iota(64).float()
    for k in range(4):
        x = torch.where(lengths > k, x + x.view(2, 32).flip(0).flatten(), x)
    return x


def mirrored_twice():
    """clean_two_dispatches: swaps across the middle, adding 1 on the left, twice."""
    x = X64
    for _ in range(2):
        x = x.flip(0) + (iota(64) < 32)
    return x


def butterfly(x):
    """clean_simdgroup_barrier: all lanes have their simdgroup's sum."""
    return x.view(-1, 32).sum(1, keepdim=True).expand(-1, 32).flatten()


def sum_in_order(x):
    total = torch.zeros(1)
    for value in x:
        total += value
    return total


def hashed(table):
    mask = 2**32 - 1
    at = []
    for i in range(64):
        h = (i + 1) * 2654435761 & mask
        h ^= h >> 15
        at.append((h * 0x85EBCA6B & mask) & 63)
    return table[at]


def multiplied(table):
    """clean_fibonacci_hash"""
    mask = 2**32 - 1
    upper = [(i * 2654435769 & mask) >> 26 for i in range(64)]
    rest = [(i * 2246822519 & mask) % 61 for i in range(64)]
    return table[upper] + table[rest]


def widened(values):
    """clean_small_types"""
    words = [((v << 16 | v >> 15) + ((v & 255) << 20)) & 0xFFFFFFFF for v in values.tolist()]
    return torch.tensor(words).to(torch.int32)


def cut_off(x):
    """clean_three_dimensions: threadgroups of 4x2x1"""
    y = x.clone()
    for rows in (slice(0, 2), slice(2, 3)):
        for columns in (slice(0, 4), slice(4, 5)):
            y[:, rows, columns] = x[:, rows.start, columns.start][:, None, None] - x[:, rows, columns]
    return y


M8, M16 = ramp(8, 8) % 7, ramp(16, 8) % 5

LAUNCHES = {
    # Races in a threadgroup's memory
    "race_missing_barrier": launch(X128, Output(X128.view(2, 64).flip(1).flatten()), threads=128, group=64),
    "race_early_barrier": launch(X128, Output(X128.view(2, 64).flip(1).flatten()), threads=128, group=64),
    "race_warp_synchronous": launch(X64, Output(PAIRS), threads=64, group=64),
    "race_volatile": launch(X32, Output(rotated(X32, 1)), threads=32, group=32),
    "race_simd_sum_is_no_barrier": launch(X32, Output(X32.flip(0) * 32 - X32.sum()), threads=32, group=32),
    "race_last_simdgroup": launch(X128, Output(X128.view(2, 64).sum(1)), threads=128, group=64),
    "race_tree_reduction": launch(ramp(512), Output(ramp(2, 256).sum(1)), threads=512, group=256),
    "race_in_helper": launch(X64, Output(X64 * 64 - X64.sum()), threads=64, group=64),
    "race_barrier_without_mem_device": launch(X64, Scratch(64), Output(SWAPPED * 2), threads=64, group=64),
    "race_barrier_without_mem_threadgroup": launch(X64, Output(X64.flip(0)), threads=64, group=64),
    "race_barrier_mem_none": launch(X64, Output(X64.flip(0)), threads=64, group=64),
    "race_simdgroup_barrier_too_narrow": launch(X64, Output(X64.flip(0)), threads=64, group=64),
    "race_simdgroup_barrier_mem_none": launch(X64, Output(PAIRS), threads=64, group=64),
    "race_simdgroup_barrier_without_mem_device": launch(X64, Scratch(64), Output(PAIRS * 2), threads=64, group=64),
    "race_in_place_rotation": launch(Output(SWAPPED, X64), threads=64, group=64),
    "race_double_buffer_one_slot": launch(X256, Output(X256.view(4, 64).flip(1).sum(0)), threads=64, group=64),
    "race_prefetch_too_far": launch(ramp(384), Output(ramp(6, 64).flip(1).sum(0)), threads=64, group=64),
    "race_matmul_second_barrier": launch(
        ramp(8, 16) % 5,
        ramp(16, 32) % 7,
        Output((ramp(8, 16) % 5) @ (ramp(16, 32) % 7)),
        threads=(32, 8),
        group=(32, 4),
    ),
    "race_last_barrier_saved": launch(X64, Output(blurred()), threads=64, group=64),
    "race_barrier_every_other_round": launch(X64, Output(mixed(4)), threads=64, group=64),
    "race_scan_in_place": launch(X32, Output(X32.cumsum(0)), threads=32, group=32),
    "race_scan_narrow_barrier": launch(X128, Output(X128.cumsum(0)), threads=128, group=128),
    "race_scan_of_totals": launch(X128, Output(X128.cumsum(0)), threads=128, group=128),
    "race_bitonic_sort": launch(X32 * 37 % 41, Output((X32 * 37 % 41).sort().values), threads=32, group=32),
    "race_histogram_in_threadgroup": launch(
        LANES_TWICE, Output(torch.full((32,), 2, dtype=torch.int32)), threads=64, group=64
    ),
    "race_histogram_flush": launch(LANES_TWICE, Output(torch.full((32,), 2, dtype=torch.int32)), threads=64, group=64),
    "race_counter_reset": launch(SIGNED, Output((SIGNED[32:] > 0).sum(dtype=torch.int32)[None]), threads=64, group=64),
    "race_scratch_reused": launch(X64, Output((X64 - 64).sum().expand(64).clone()), threads=64, group=64),
    "race_producer_and_consumer": launch(X32, Output(X32**2), threads=64, group=64),
    "race_mixed_widths": launch(
        X256, Output(rotated(X256, 128).view(64, 4).t().contiguous().flatten()), threads=64, group=64
    ),
    "race_struct_in_threadgroup": launch(
        X64,
        Output(torch.cat([(X64[32:].max() + X64[:32].sum()).expand(32), (X64[:32].max() + X64[32:].sum()).expand(32)])),
        threads=64,
        group=64,
    ),
    "race_two_kinds_of_threads": launch(X32, Output(X32 * 2), threads=32, group=32),
    "race_simdgroup_load_too_early": launch(M8, Output(M8 * 2), threads=32, group=32),
    "race_simdgroup_store_then_read": launch(M8, ramp(8), Output(M8 + ramp(8)), threads=32, group=32),
    "race_simdgroup_load_of_other_simdgroup": launch(
        M16, Output(M16.view(2, 8, 8).flip(0).contiguous()), threads=64, group=64
    ),
    "race_simdgroup_store_overlap": launch(M16, Output(M16[:8].clone()), threads=64, group=64),
    # Races in device memory
    "race_histogram_in_device": launch(
        iota(128) % 32,
        Output(torch.full((32,), 4, dtype=torch.int32), torch.zeros(32, dtype=torch.int32)),
        threads=128,
        group=32,
    ),
    "race_plain_read_of_atomic": launch(
        Output(ints(8), ints(0)), Output(torch.ones(8, dtype=torch.int32)), threads=8, group=1
    ),
    "race_last_threadgroup": launch(
        iota(128), Scratch(4), ints(0), Output(iota(128).sum(dtype=torch.int32)[None], ints(0)), threads=128, group=32
    ),
    "race_chained_threadgroups": launch(
        X128,
        Output(X128.view(4, 32).sum(1)),
        Output((X128.view(4, 32) + torch.tensor([[0.0], [528.0], [1552.0], [2576.0]])).flatten()),
        threads=128,
        group=32,
    ),
    "race_halo_of_other_threadgroup": launch(
        X64, Scratch(64), Output(rotated(X64, -2) + 2 * X64 + rotated(X64, 2)), threads=64, group=32
    ),
    "race_transpose_in_place": launch(Output(ramp(8, 8).t().contiguous(), ramp(8, 8)), threads=(8, 8), group=(8, 1)),
    "race_aliased_bindings": launch(Output(X64.flip(0), X64), Same(0), threads=64, group=32),
    "race_split_k": launch(X256, Output(X256.view(8, 32).sum(0), torch.zeros(32)), threads=(32, 2), group=(32, 1)),
    "race_pack_bits": launch(
        SIGNED[:32],
        Output(
            ((SIGNED[:32] > 0).view(4, 8) * (1 << iota(8))).sum(1).to(torch.uint8), torch.zeros(4, dtype=torch.uint8)
        ),
        threads=32,
        group=32,
    ),
    "race_byte_by_word": launch(
        iota(32) * 5, Output((iota(32) * 5).to(torch.uint8), torch.zeros(32, dtype=torch.uint8)), threads=32, group=32
    ),
    # Races that are hard to see
    "race_hidden_by_own_read": launch(X32, Output((X32.flip(0) * 2).repeat(2)), threads=64, group=64),
    "race_hidden_in_grid": launch(Output(ramp(1) * 3, ramp(1) * 3), ramp(8), Output(ramp(8) * 3), threads=8, group=1),
    "race_merged_stores": launch(SIGNED, Output(X64.flip(0)), threads=64, group=64),
    "race_fill_loop": launch(X64, Output(X64[32:].clone()), threads=64, group=64),
    "race_copy_loop": launch(X64, Output(X64[32:] * 2), threads=64, group=64),
    "race_half_in_word": launch(
        X64.half(),
        Output((X64 * torch.tensor([1.0, -1]).repeat(32)).half().view(torch.int32)[16:].clone()),
        threads=64,
        group=64,
    ),
    "race_barrier_before_device_store": launch(X64, Scratch(64), Output(SWAPPED * 2), threads=64, group=64),
    "race_overlapping_views": launch(
        Output(torch.cat([ramp(96)[32:], ramp(96)[64:]]), ramp(96)), Same(0, 32), threads=64, group=32
    ),
    "race_constant_alias": launch(
        Output(torch.tensor([3.0, 3, 6, 9]), torch.tensor([3.0, 1, 2, 3])), Same(0), threads=4, group=1
    ),
    "race_in_three_dimensions": launch(
        ramp(4, 4, 4), Output(ramp(4, 4, 4).flip(0)), threads=(4, 4, 4), group=(4, 4, 4)
    ),
    "race_in_function": launch(X64, Output(SWAPPED), threads=64, group=64),
    # Two stores to one element
    "double_store_merged": launch(X64, Output(torch.tensor([-528.0, 1552])), threads=64, group=32),
    "double_store_every_lane": launch(X64, Output(X64.view(2, 32).sum(1)), threads=64, group=32),
    "double_store_every_simdgroup": launch(X128, Output(X128.view(2, 64).sum(1)), threads=128, group=64),
    "double_store_grid_stride": launch(X256, Output(X256 * 2), threads=64, group=32),
    "double_store_step": launch(X32, Output(X32.repeat_interleave(4), torch.zeros(128)), threads=32, group=32),
    "double_store_edge_tile": launch(ramp(80), Output(ramp(80) * 2), 80, threads=96, group=32),
    "double_store_simdgroup_matrix": launch(M16, Output(M16 * 2, torch.zeros(16, 8)), threads=64, group=64),
    "double_store_row_pitch": launch(X32, Output(X32, torch.zeros(32)), threads=(8, 4), group=(8, 1)),
    "double_store_scatter": launch(
        ramp(8),
        ints(3, 1, 4, 1, 5, 0, 2, 6),
        Output(torch.tensor([6.0, 4, 7, 1, 3, 5, 8, 0]), torch.zeros(8)),
        threads=8,
        group=1,
    ),
    "double_store_vector": launch(
        X32, Output(torch.stack([X32, X32 * 0, X32 * 0, -X32], 1), torch.zeros(32, 4)), threads=32, group=32
    ),
    # Elements without a store
    "not_stored_vector_tail": launch(ramp(30), Output(ramp(30) * 2), 30, threads=8, group=8),
    "not_stored_last_threadgroup": launch(ramp(100), Output(ramp(100) * 2), 100, threads=128, group=32),
    "not_stored_masked_rows": launch(
        X32, ints(4, 0, 2, 0, 1, 3, 4, 0), Output(torch.tensor([10.0, 0, 19, 0, 17, 66, 106, 0])), threads=8, group=8
    ),
    "not_stored_second_output": launch(
        torch.tensor([4.0, 0, 16, 64]),
        Output(torch.tensor([2.0, 0, 4, 8])),
        Output(torch.tensor([0.5, 0, 0.25, 0.125])),
        threads=4,
        group=4,
    ),
    "not_stored_guard": launch(ramp(6, 10), Output(ramp(6, 10) * 2), 10, threads=(16, 6), group=(16, 1)),
    "not_stored_partial_block": launch(ramp(10, 8), Output(ramp(10, 8)), 10, threads=64, group=32),
    "not_stored_component": launch(
        ramp(8), Output(torch.stack([ramp(8), ramp(8), ramp(8), torch.ones(8)], 1)), threads=8, group=8
    ),
    # Accesses outside a binding
    "bounds_no_guard": launch(Output(iota(100).float()), 100, threads=128, group=32),
    "bounds_halo_right": launch(X64, Output(torch.tensor([1.0] * 63 + [0])), threads=64, group=32),
    "bounds_halo_left": launch(X64, Output(torch.tensor([0] + [1.0] * 63)), threads=64, group=32),
    "bounds_before_offset": launch(Behind(ramp(72), 8), Output(torch.tensor([0] + [1.0] * 63)), threads=64, group=32),
    "bounds_gather_padding": launch(X64, ints(5, -1, 63, 0), Output(torch.tensor([6.0, 0, 64, 1])), threads=4, group=4),
    "bounds_scatter_end": launch(
        ramp(4), ints(2, 4, 0, 3), Output(torch.tensor([3.0, 0, 1, 4]), torch.zeros(4)), 4, threads=4, group=4
    ),
    "bounds_sentinel": launch(X64, ints(5, 1 << 30, 63), Output(torch.tensor([6.0, 0, 64])), threads=3, group=3),
    "bounds_row_too_far": launch(ramp(4, 1024), Output(ramp(4, 1024).sum(0)), 4, threads=1024, group=256),
    "bounds_inclusive_end": launch(X32, ints(5, 20, 32), Output(torch.tensor([5.0, 20, 32])), threads=3, group=3),
    "bounds_reversed": launch(X64, Output(X64.flip(0)), threads=64, group=32),
    "bounds_swapped_guards": launch(
        Output(iota(4).float()[:, None].expand(4, 6).contiguous()), 4, 6, threads=(8, 8), group=(8, 8)
    ),
    "bounds_vector_tail": launch(
        ramp(30), Output(torch.cat([ramp(28).view(7, 4).sum(1), torch.tensor([59.0])])), 30, threads=8, group=8
    ),
    "bounds_struct_copy": launch(ramp(8, 3), Output(ramp(8, 3).roll(-1, 0)), threads=8, group=8),
    "bounds_atomic_bin": launch(
        iota(17) / 16,
        Output(ints(*[1] * 15, 2), torch.zeros(16, dtype=torch.int32)),
        threads=17,
        group=17,
    ),
    "bounds_constant": launch(ramp(8), Output(1 + 2 * ramp(8) + 3 * ramp(8) ** 2), [1.0, 2.0, 3.0], threads=8, group=8),
    "bounds_simdgroup_load": launch(ramp(12, 8), Output(ramp(12, 8)[4:].clone()), threads=32, group=32),
    "bounds_simdgroup_store": launch(ramp(16, 8), Output(ramp(12, 8)), threads=64, group=32),
    "bounds_fill_loop": launch(Output(torch.zeros(30)), 30, threads=1, group=1),
    "bounds_byte": launch(ramp(34), Output(torch.ones(33, dtype=torch.uint8)), threads=34, group=34),
    "bounds_high_bits": launch(
        X64, ints(5, 1 << 46, 63, dtype=torch.int64), Output(torch.tensor([6.0, 0, 64])), threads=3, group=3
    ),
    "bounds_in_function": launch(X32, Output(X32.view(8, 4).sum(1)), threads=8, group=8),
    "bounds_late": launch(ramp(4096), Output(torch.cat([ramp(4096)[1:], torch.zeros(1)])), threads=4096, group=256),
    # Accesses outside a threadgroup array
    "bounds_tile_overrun": launch(
        X32,
        X32 * 2,
        Output(torch.cat([torch.zeros(1), (X32**2 * 2).flip(0)[1:]])),
        threads=32,
        group=32,
    ),
    "bounds_tile_before": launch(X32, Output(X32.flip(0) * 2 - torch.cat([X32[:1], X32[:-1]])), threads=32, group=32),
    "bounds_too_few_partials": launch(X128, Output(X128 * 128 - X128.sum()), threads=128, group=128),
    "bounds_tile_row": launch(ramp(8, 32), Output(ramp(8, 32).t().contiguous()), threads=(32, 8), group=(32, 8)),
    # Null pointers
    "null_optional_input": launch(ramp(8), ramp(1), 0, Output(ramp(8)), threads=8, group=8),
    "null_row": launch(
        ramp(4, 4),
        ints(2, -1, 0),
        Output(torch.tensor([[10.0, 11, 12], [0, 0, 0], [2, 3, 4]])),
        threads=(3, 3),
        group=(3, 3),
    ),
    "null_optional_output": launch(X64, Output(X64.view(2, 32).sum(1)), Scratch(2), 0, threads=64, group=32),
    "null_scratch": launch(X32, Output(X32.flip(0)), threads=32, group=32),
    # Writes to what is bound for reading
    "read_only_const_cast": launch(SIGNED, Output(SIGNED.clamp(min=0)), threads=64, group=32),
    "read_only_cast_in_helper": launch(X64, Output(-X64), threads=64, group=32),
    "read_only_atomic": launch(iota(8), Output(ints(28), ints(0)), threads=8, group=8),
    "read_only_simdgroup_store": launch(M8, Output(M8 * 2), threads=32, group=32),
    # Reads of what nobody wrote
    "uninitialised_accumulator": launch(X64, Output(X64), threads=64, group=32),
    "uninitialised_tile_tail": launch(
        ramp(50), Output(torch.cat([ramp(50), torch.zeros(14)]).flip(0)), 50, threads=64, group=64
    ),
    "uninitialised_partial_sums": launch(ramp(48), Output(ramp(48).sum()[None]), threads=48, group=48),
    "uninitialised_halo": launch(X64, Output(torch.tensor([1.0] * 63 + [0])), 64, threads=64, group=32),
    "uninitialised_prologue": launch(X256, Output(X256.view(4, 64).flip(1).sum(0)), threads=64, group=64),
    "uninitialised_scratch": launch(X32, Scratch(16), Output(X32.view(8, 4).mean(1)), threads=8, group=8),
    "uninitialised_counter": launch(SIGNED, Output((SIGNED > 0).sum(dtype=torch.int32)[None]), threads=64, group=64),
    "uninitialised_atomic_output": launch(iota(32) % 8, Output(ints(*[4] * 8, *[0] * 24)), threads=32, group=32),
    "uninitialised_matrix_rows": launch(
        ramp(6, 8), Output(torch.cat([ramp(6, 8) * 2, torch.zeros(2, 8)])), 6, threads=32, group=32
    ),
    "uninitialised_other_threadgroup": launch(
        iota(64) % 32, Output((iota(64) % 32).float() ** 2), threads=64, group=32
    ),
    "uninitialised_running_maximum": launch(
        SIGNED.repeat(2), Output(SIGNED.repeat(2).view(4, 32).max(0).values.flip(0)), threads=32, group=32
    ),
    "uninitialised_late_store": launch(X64, Output(X64 * 2), Output(X64 * 2 + 1), threads=64, group=32),
    "uninitialised_half": launch(X32.half(), Output(X32.flip(0).half()), threads=32, group=32),
    "uninitialised_struct_member": launch(X32, Output(iota(32).flip(0)), threads=32, group=32),
    # Alignment
    "misaligned_float4": launch(ramp(4, 5), Output(ramp(4, 5).sum(1)), threads=4, group=4),
    "misaligned_half4": launch(ramp(35).half(), Output((ramp(32) * 4 + 6).half()), threads=32, group=32),
    "misaligned_store": launch(
        X32, Output(torch.cat([torch.zeros(1), torch.stack([X32, -X32], 1).flatten()])), threads=32, group=32
    ),
    "misaligned_tile_row": launch(ramp(8, 8), Output(ramp(8, 8)[:, 4:].sum(1)), threads=32, group=32),
    "misaligned_packed_weights": launch(
        iota(48).to(torch.uint8),
        Output((iota(48).view(16, 3) << ints(0, 8, 16)).sum(1, dtype=torch.int32)),
        threads=16,
        group=16,
    ),
    "misaligned_binding": launch(Behind(ramp(65), 1), Output(X64.view(32, 2).sum(1) + 2), threads=32, group=32),
    # Arithmetic
    "overflow_widened_too_late": launch(X64, ROWS, 1 << 20, 64, Output(FAR_ROWS), threads=4, group=4),
    "overflow_int": launch(X64, ROWS, 1 << 20, 64, Output(FAR_ROWS), threads=4, group=4),
    "overflow_shift": launch(X64, ints(0, 3, 1024, 2048), 64, Output(FAR_ROWS), threads=4, group=4),
    "overflow_sum": launch(
        X64, ints(0, 4095, 1, 2), 1 << 20, (1 << 20) + 5, 64, Output(torch.tensor([-1.0] * 4)), threads=4, group=4
    ),
    "overflow_batch_offset": launch(
        Output(torch.tensor([1.0, 0, 3, 0]), torch.zeros(4)), ints(0, 16, 0, 32), 1 << 28, 4, threads=4, group=4
    ),
    "division_empty_segment": launch(ints(12, 0, -9), ints(4, 0, 3), Output(ints(3, 0, -3)), threads=3, group=3),
    "division_remainder": launch(iota(32), Output(iota(32)), 0, threads=32, group=32),
    "division_vector": launch(iota(64), Output(iota(64) // ints(3, 1).repeat(32)), ints(3, 0), threads=32, group=32),
    "division_ratio": launch(Output(iota(4)), 4, 8, threads=4, group=4),
    "shift_full_word": launch(
        ints(-1, -1, 0x12345678, -1),
        ints(4, 31, 32, 0),
        Output(ints(15, 0x7FFFFFFF, 0x12345678, 0)),
        threads=4,
        group=4,
    ),
    "shift_negative": launch(ints(1, 2, 3, 4, 5), Output(ints(1 << 24, 2 << 16, 3 << 8, 4, 0)), threads=5, group=5),
    "shift_64": launch(Output(ints(-1, -2, -(1 << 63), 0, dtype=torch.int64)), ints(0, 1, 63, 64), threads=4, group=4),
    "shift_right_of_nothing": launch(
        ints(-1, -1, 0x70000000, 9), ints(4, 32, 3, 0), Output(ints(15, -1, 3, 0)), threads=4, group=4
    ),
    # Control flow
    "divergence_early_return": launch(ramp(50), Output(ramp(50).flip(0)), 50, threads=64, group=64),
    "divergence_branch": launch(X64, Output(X32), threads=64, group=64),
    "divergence_branches": launch(X64, Output(torch.cat([X64[32:], -X64[:32]])), threads=64, group=64),
    "divergence_helper": launch(X64, Output(torch.cat([-X64[32:], X64[:32]])), threads=64, group=64),
    "divergence_loop": launch(iota(64) // 32 * 2 + 1, Output(grown(iota(64) // 32 * 2 + 1)), threads=64, group=64),
    "divergence_switch": launch(
        X64,
        iota(64) % 3,
        Output(torch.where(iota(64) % 3 == 0, X64, torch.where(iota(64) % 3 == 1, 1, -X64))),
        threads=64,
        group=64,
    ),
    "divergence_break": launch(
        torch.where(iota(256) // 64 == iota(256) % 2, (iota(256) % 64 ^ 32).float(), -1.0),
        Output(iota(64) % 2 + 1),
        threads=64,
        group=64,
    ),
    "divergence_simdgroup_barrier": launch(X32, Output(torch.cat([PAIRS[:16], X32[16:]])), threads=32, group=32),
    "divergence_shuffle": launch(X32, Output(X32[:16] + X32[16:]), threads=32, group=32),
    "divergence_broadcast": launch(X32, Output(X32 - 1), threads=32, group=32),
    "divergence_tail_shuffle": launch(ramp(20), Output(torch.tensor([1.0] * 19 + [0])), 20, threads=32, group=32),
    "divergence_partial_simdgroup": launch(
        ramp(48), Output(ramp(48) + ramp(3, 2, 8).flip(1).flatten()), threads=48, group=48
    ),
    "divergence_shuffle_index": launch(X32, (iota(32) + 1), Output(rotated(X32, 1)), threads=32, group=32),
    "divergence_quad_shuffle": launch(
        X32,
        Output(torch.where(iota(32) % 4 < 2, X32 + 2, X32)),
        threads=32,
        group=32,
    ),
    "divergence_matrix_branch": launch(M8, Output(M8 @ M8), threads=32, group=32),
    "divergence_matrix_early_return": launch(M8, Output(M8), threads=32, group=32),
    "divergence_matrix_partial_simdgroup": launch(M8, Output(M8), threads=16, group=16),
    # Results that depend on the order of threads
    "schedule_append": launch(
        iota(64), Output(torch.cat([iota(64)[1::2], iota(32) * 0]), iota(64) * 0), ints(0), threads=64, group=16
    ),
    "schedule_float_sum": launch(
        X64 * 1e7 + 1, Output(sum_in_order(X64 * 1e7 + 1), torch.zeros(1)), threads=64, group=16
    ),
    "schedule_last_wins": launch(iota(64) % 3, Output(ints(61), ints(0)), threads=64, group=16),
    "schedule_tickets": launch(X256, ints(0), Output(X256.view(8, 32).sum(1)), threads=256, group=32),
    # Kernels that only look suspicious
    "clean_half_words": launch(X128, Output(X128.view(2, 64).flip(1).flatten().half()), threads=128, group=64),
    "clean_bytes": launch(
        iota(64),
        Output(iota(64).view(16, 4).flip(1).flatten().to(torch.uint8)),
        Output(iota(64) % 2 == 1),
        threads=64,
        group=32,
    ),
    "clean_simdgroup_barrier": launch(X64, Scratch(64), Output(butterfly(X64) - X64), threads=64, group=64),
    "clean_both_flags": launch(X64, Scratch(64), Output(SWAPPED), threads=64, group=64),
    "clean_in_place_alias": launch(Output(X64 * 2 + 1, X64), Same(0), threads=64, group=32),
    "clean_atomics_only": launch(
        iota(128),
        Output(ints(8128), ints(0)),
        Output(ints(127), ints(0)),
        Output(ints(128), ints(0)),
        Output(ints(128)),
        threads=128,
        group=32,
    ),
    "clean_compare_exchange": launch(SIGNED, Output(torch.tensor([63.0]), torch.zeros(1)), threads=64, group=16),
    "clean_ping_pong": launch(ramp(384), Output(ramp(6, 64).flip(1).sum(0)), threads=64, group=64),
    "clean_padded_tile": launch(ramp(8, 8), Output(ramp(8, 8).t().contiguous()), threads=(8, 8), group=(8, 8)),
    "clean_broadcast_reads": launch(X64, 3.0, Output(X64 + 4), threads=64, group=32),
    "clean_early_exit": launch(ramp(100), Output(ramp(100) * 2), 100, threads=128, group=32),
    "clean_early_exit_of_a_simdgroup": launch(X32, Output(X32.sum() + 31 - iota(32).float()), threads=64, group=64),
    "clean_partial_threadgroups": launch(
        ramp(6, 12),
        Output(torch.cat([ramp(6, 12)[:, :8].flip(0, 1), ramp(6, 12)[:, 8:].flip(0, 1)], 1)),
        threads=(12, 6),
        group=(8, 8),
    ),
    "clean_struct_members": launch(torch.tensor([-2.0, 12]), Output(torch.full((64,), 16.0)), threads=64, group=64),
    "clean_packed_float3": launch(X64, Output(torch.stack([X64, -X64, torch.ones(64)], 1)), threads=64, group=32),
    "clean_float3_padding": launch(X64, Output(SWAPPED + 3), threads=64, group=64),
    "clean_struct_padding": launch(X64, Output(X64 * (iota(64) % 4)), threads=64, group=64),
    "clean_component_stores": launch(X64, Output(SWAPPED + 3), threads=64, group=64),
    "clean_reduction_in_branch": launch(
        X32, Output(torch.where(iota(32) % 2 == 0, X32[::2].sum(), 2.0)), threads=32, group=32
    ),
    "clean_shuffle_down": launch(X32, Output(X32.sum()[None]), threads=32, group=32),
    "clean_uniform_branch": launch(
        X128,
        Output(torch.cat([X64 + 2, (X128[64:].flip(0) + 1).view(2, 32).flip(0).flatten()])),
        ints(2, 1),
        threads=128,
        group=64,
    ),
    "clean_hash": launch(X64, Output(hashed(X64)), threads=64, group=32),
    "clean_wrapping_guard": launch(
        X64, Output(torch.cat([X64[1:], torch.zeros(1)]) + torch.cat([torch.zeros(1), X64[:-1]])), threads=64, group=32
    ),
    "clean_negative_offset": launch(X64, Output(X64.flip(0)), threads=64, group=32),
    "clean_end_pointer": launch(ramp(4, 7), Output(ramp(4, 7).sum(1)), 7, threads=4, group=4),
    "clean_matrix_by_simdgroup": launch(
        M8, Output(torch.stack([M8 * 2, M8 @ M8 + 2 * torch.eye(8)])), threads=64, group=64
    ),
    "clean_matrix_round_trip": launch(M8, Output(M8.t().contiguous()), threads=32, group=32),
    "clean_matrix_neighbours": launch(ramp(8, 16), Output(ramp(8, 16)), threads=64, group=64),
    "clean_matrix_elements": launch(M8, Output(M8 * 2), threads=32, group=32),
    "clean_own_elements": launch(X64, Output(X64 * 6 + 1), threads=64, group=64),
    "clean_changing_owners": launch(
        X64, Scratch(64), Output(X64.flip(0).view(2, 16, 2).flip(0, 2).flatten()), threads=64, group=64
    ),
    "clean_tile_of_two_types": launch(X64, Output(X64.flip(0).view(2, 32).flip(0).flatten()), threads=64, group=64),
    "clean_vectors_and_scalars": launch(X128, Output(torch.full((126,), 129.0)), 126, threads=128, group=128),
    "clean_guarded_shift": launch(
        ints(0, 3, 31, 32, 40), Output(ints(0, 7 ^ 32, 0x7FFFFFFF ^ 3, ~3, ~2)), threads=5, group=5
    ),
    "clean_guarded_load": launch(X32, Output(X32), 0, threads=32, group=32),
    "clean_float_division": launch(
        torch.tensor([2.0, 0, -4]), Output(torch.tensor([0.5, torch.inf, -0.25])), threads=3, group=3
    ),
    "clean_constant_table": launch(iota(4), Output(torch.tensor([1.0 + 11, 2 + 6, 4 + 3, 8 + 1])), threads=4, group=4),
    "clean_two_dispatches": launch(Output(mirrored_twice(), X64), threads=64, group=32, repeat=2),
    "clean_quads": launch(
        X32,
        Output(
            X32.view(8, 4).sum(1, keepdim=True).expand(8, 4).flatten()
            + torch.where(iota(32) // 4 % 2 == 0, PAIRS[:32], 0)
        ),
        threads=32,
        group=32,
    ),
    "clean_partial_simdgroup": launch(
        ramp(40),
        Output(torch.cat([ramp(32).sum().expand(32), ramp(40)[32:].sum().expand(8)]) + ramp(5, 2, 4).flip(1).flatten()),
        threads=40,
        group=40,
    ),
    "clean_later_barrier": launch(X64, Scratch(64), Output(SWAPPED), threads=64, group=64),
    "clean_fibonacci_hash": launch(X64, Output(multiplied(X64)), threads=64, group=32),
    "clean_negative_stride": launch(X64, Output(X64.flip(0)), -1, 63, threads=64, group=32),
    "clean_merged_branches": launch(X64, X32, Output(torch.cat([(X32 + X32) * 2, X64[32:]])), 32, threads=64, group=32),
    "clean_loops_over_arrays": launch(X64, Output(X64.flip(0)), threads=64, group=64),
    "clean_disjoint_views": launch(
        Output(torch.cat([X128[64:].flip(0), X128[64:]]), X128), Same(0, 64), threads=64, group=32
    ),
    "clean_small_types": launch(
        (iota(64) * 1021).to(torch.int16), Output(widened(iota(64) * 1021)), threads=64, group=32
    ),
    "clean_local_pointers": launch(X64, Output(X64 + torch.cat([torch.zeros(1), X64[:-1]])), threads=64, group=32),
    "clean_one_reader_many_writers": launch(
        ints(0), Output(torch.full((64,), 2, dtype=torch.int32)), threads=64, group=32
    ),
    "clean_three_dimensions": launch(ramp(2, 3, 5), Output(cut_off(ramp(2, 3, 5))), threads=(5, 3, 2), group=(4, 2, 1)),
    "clean_many_barriers": launch(ramp(4), Output(ramp(4)), threads=4, group=4),
    "clean_zeroed_histogram": launch(
        iota(64) % 16, Output(torch.full((16,), 4, dtype=torch.int32)), threads=64, group=64
    ),
}


# Marks -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    line: int
    kind: str
    scope: str
    name: str

    def is_met_by(self, finding, others):
        """Whether the finding is this fault, at this line and, for a race, at one of the other lines."""
        if (finding.kind, finding.scope) != (self.kind, self.scope):
            return False
        if self.name and f"`{self.name}`" not in finding.buffer:
            return False
        if finding.kind == "race":
            return lines(finding) in [{self.line, other} for other in others or [self.line]]
        return lines(finding) <= {self.line, *others}


MARK = re.compile(r"// fault: (?P<kind>[\w -]+?)(?: (?P<scope>simdgroup|threadgroup|grid))?(?:, (?P<name>\w+))?$")


def marks_of(name):
    """The faults that a file marks, and the lines of the marks `other`."""
    found = [(number, MARK.search(line)) for number, line in enumerate(text_of(name).splitlines(), 1)]
    marks = [Mark(number, m["kind"], m["scope"] or "", m["name"] or "") for number, m in found if m]
    return [m for m in marks if m.kind != "other"], [m.line for m in marks if m.kind == "other"]


def text_of(name):
    return (FOLDER / f"{name}.metal").read_text()


@functools.cache
def library(name):
    return simulator.compile_shader(f'#line 1 "{name}.metal"\n' + text_of(name))


def lines(finding):
    return {access.line for access in (finding.access, finding.other) if access}


# The tests ---------------------------------------------------------------------------------------


def findings_of(name, kernel, seed=None):
    """What the checker finds in a kernel, the reading of its results included."""
    run = functools.partial(LAUNCHES[name].run, getattr(library(name), kernel))
    if name.startswith("schedule_"):
        return simulator.compare_schedules(run).findings
    with simulator.check(report_only=True, seed=seed) as report:
        run()
    return report.findings


def assert_clean(name, kernel):
    """Right without the checker, and without findings under it in each schedule."""
    for got, expected in LAUNCHES[name].run(getattr(library(name), kernel)):
        assert torch.equal(got, expected)
    for seed in SEEDS:
        assert "\n".join(map(str, findings_of(name, kernel, seed))) == ""


def test_every_file_has_a_launch_and_marks():
    assert NAMES == sorted(LAUNCHES)
    assert [name for name in NAMES if bool(marks_of(name)[0]) == name.startswith("clean_")] == []


def test_all_kinds_and_scopes_are_planted():
    planted = [(mark.kind, mark.scope) for name in FAULTS for mark in marks_of(name)[0]]
    for scope in ("simdgroup", "threadgroup", "grid"):
        assert planted.count(("race", scope)) >= 8
        assert planted.count(("double store", scope)) >= 2
    kinds = [
        "bounds",
        "null",
        "read-only",
        "misaligned",
        "uninitialised",
        "not stored",
        "overflow",
        "division",
        "shift",
    ]
    for kind in [*kinds, "divergence", "schedule"]:
        assert sum(planted_kind == kind for planted_kind, _ in planted) >= 4


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_found(name):
    marks, others = marks_of(name)
    for seed in SEEDS:
        findings = findings_of(name, "fault", seed)
        found = "\n".join(map(str, findings)) or "nothing"
        for mark in marks:
            assert any(mark.is_met_by(f, others) for f in findings), f"{mark} is not found, seed {seed}, but:\n{found}"
        for finding in findings:
            assert lines(finding) <= {mark.line for mark in marks} | set(others), f"blames another line:\n{finding}"
            places = [access for access in (finding.access, finding.other) if access]
            assert all(Path(access.file).name == f"{name}.metal" for access in places)


@pytest.mark.parametrize("name", FAULTS)
def test_repaired_twin_is_clean(name):
    assert_clean(name, "repaired")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("clean_")])
def test_suspicious_kernel_is_clean(name):
    assert_clean(name, "clean")


def race_in(name):
    return next(finding for finding in findings_of(name, "fault") if finding.kind == "race")


def test_a_finding_tells_who_and_where():
    """Threads and threadgroups of both accesses, their functions and what each did."""
    finding = race_in("race_missing_barrier")
    accesses = finding.access, finding.other
    assert {access.kind for access in accesses} == {"read", "write"}
    assert sum(access.thread[0] for access in accesses) == 63
    assert finding.access.threadgroup == finding.other.threadgroup
    assert all(access.function.startswith("reverse") and access.column > 1 for access in accesses)
    assert finding.buffer == "threadgroup memory `tile`"
    assert "kernel fault" in finding.text
    assert "race_missing_barrier.metal:12:" in finding.text

    finding = race_in("race_transpose_in_place")
    here, there = finding.access, finding.other
    assert (here.thread[0], here.threadgroup[1]) == (there.threadgroup[1], there.thread[0])
    assert finding.buffer == "buffer(0) `x`"

    assert race_in("race_in_helper").access.function.startswith("sum_over_threadgroup")


def test_an_access_that_lands_in_another_buffer_is_found():
    """The address exists and is bound, but not for the pointer that it was made from."""
    library = simulator.compile_shader("""
        kernel void store(device float* x, device float* y, constant long& distance) { x[distance] = 1; y[0] = 2; }
    """)
    with simulator.check(report_only=True) as report:
        x, y = torch.zeros(64, device="mps"), torch.zeros(64, device="mps")
        at = [simulator._simulator.host_alias(t).data_ptr() for t in (x, y)]
        library.store(x, y, (at[1] - at[0]) // 4 + 5, threads=1)
        assert y.tolist()[0] == 2
    [finding] = report.findings
    assert (finding.kind, finding.buffer, finding.access.kind) == ("bounds", "buffer(0) `x`", "write")
