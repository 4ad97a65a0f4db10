"""The Metal classes over the software device: one case per rule of Apple's API validation, and what must work."""

import os
import runpy
import subprocess
from pathlib import Path

import pytest
import torch

import mpskernels.simulator
from mpskernels.simulator import compiler

KERNELS = """
#include <metal_stdlib>
using namespace metal;

constant bool has_bias [[function_constant(0)]];

kernel void axpy(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                 constant float& scale [[buffer(2)]], uint i [[thread_position_in_grid]]) {
  y[i] += scale * x[i];
}

kernel void scratch(device float* y [[buffer(0)]], threadgroup float* values [[threadgroup(0)]],
                    uint i [[thread_position_in_threadgroup]], uint n [[threads_per_threadgroup]]) {
  values[i] = i;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = values[n - 1 - i];
}

struct Wide { float4 values[2]; };
kernel void shared_struct(device float* y [[buffer(0)]], threadgroup Wide& shared [[threadgroup(0)]],
                          uint i [[thread_position_in_threadgroup]]) {
  y[i] = shared.values[1].x;
}

kernel void wide(device float* y [[buffer(0)]], threadgroup float* values [[threadgroup(0)]],
                 uint i [[thread_position_in_threadgroup]]) {
  threadgroup float own[4096];
  own[i] = values[i] = i;
  y[i] = own[i] + values[i];
}

[[kernel, max_total_threads_per_threadgroup(64)]] void limited(device float* y [[buffer(0)]],
                                                               uint i [[thread_position_in_grid]]) {
  y[i] = i;
}

kernel void maybe_bias(device float* y [[buffer(0)]],
                       device const float* bias [[buffer(1), function_constant(has_bias)]],
                       uint i [[thread_position_in_grid]]) {
  float value = 1;
  if (has_bias) value += bias[i];
  y[i] = value;
}

kernel void divergent(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  if (i < 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    y[i] = simd_sum(1.0f);
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}
"""

SIMULATOR = Path(mpskernels.simulator.__file__).parent

LEFT_A_BLOCK = "an exception left a dispatch block, which ends the process on a Mac: "

# Case of framework_cases.mm -> its outcome, or a part of the error's text.
WORKS = {
    "runs_after_commit": "0 0 0 0 | 2 4 6 8 status 4",
    "commands_keep_buffers_and_bytes": "15 15 15 15 ",
    "offsets_select_parts": "6 8 0 0 ",
    "commands_run_in_order": "18 36 54 72 ",  # 2, then 2 + 2 * 2 = 6, then 6 + 2 * 6 = 18 times x
    "threadgroups_make_a_grid": "2 4 6 8 ",
    "completed_handler_is_called": "1",
    "scheduled_handler_comes_first": "scheduled completed ",
    "times_enclose_the_work": "in order",
    "buffers_in_a_range": "0 6 8 0 ",
    "private_memory_is_the_devices_alone": "4 8 12 16 nothing to see",
    "no_copy_uses_the_memory_given": "18 freed 0 1",
    "memory_is_given_back": "32768 0",
    "large_buffers_are_zeros_on_a_page": "0 0 0",
    "threadgroup_memory": "3 2 1 0 ",
    "disabled_argument_needs_no_buffer": "1 1 1 1 ",
    "constant_by_name": "2 3 4 5 ",
    "constants_dictionary": "has_bias 53 0 required",
    "library_names": "axpy divergent limited maybe_bias scratch shared_struct wide nil",
    "pipeline_facts": "limited 64 32 16384",
    "descriptor_limits_threads": "mine 128",
    "library_from_data": "1",
    "source_compiles_in_the_mode_asked": "".join(
        f"metal3.1 {mode} " for mode in ("fast", "fast", "safe", "relaxed", "fast", "safe")
    )
    + "metal4.0 safe opened",
    "block_lets_an_exception_out": LEFT_A_BLOCK + "out of the block, and on",
    "inner_block_lets_an_exception_out": LEFT_A_BLOCK + "out of both",
    "block_lets_an_error_of_torch_out": LEFT_A_BLOCK + "wrong value",
    "block_lets_an_objc_exception_out": LEFT_A_BLOCK + "it is no std::exception",
    "function_lets_an_exception_out": LEFT_A_BLOCK + "out of the function",
    "once_lets_an_exception_out": LEFT_A_BLOCK + "out of the one",
    "rethrow_carries_an_exception_out": "of its own type, and on",
    "once_runs_once": "1",
    "queues_nest": "outer[]",
    "queue_excludes_threads": "8000",
    "stream_coalesces_and_runs": "0 24 one encoder",
    "stream_commits_by_itself": "begun, 20000",
    "stream_commit_runs_without_a_wait": "0 12",
    "stream_makes_way_for_an_own_encoder": "4 8 12 16 ",
    "library_of_a_url_that_is_no_file": "6 newLibraryWithURL: expected a file URL, got https://example.org/x.metallib",
    "archive_gives_what_was_added": "written, axpy, maybe_bias, maybe_bias: in none of the binary archives, "
    "limited: in none of the binary archives, axpy: in none of the binary archives, axpy, "
    "axpy: in none of the binary archives",
    "archive_is_read_from_whole_archives_only": "opened, 1 is damaged or truncated, 1 is not an archive, "
    "1 cannot be read or is empty, 1 cannot be read or is empty, 1 is no file",
    "archive_goes_into_files_only": "4 serializeToURL: cannot write /nowhere/x, "
    "4 serializeToURL: expected a file URL, got https://example.org/x",
    "function_missing": "5 function 'none' does not exist in the library",
    "library_missing": "6 metallib '/nowhere/x.metallib' does not exist",
    "library_from_source_without_compiler": "3 no compiler for Metal sources is loaded in this process",
}
REFUSED = {
    "unbound_buffer": "axpy: argument y (buffer 1, device float *) is not bound",
    "enabled_argument_unbound": "maybe_bias: argument bias (buffer 1, device const float *) is not bound",
    "offset_outside": "axpy: argument x (buffer 0, device const float *): offset 16 lies outside the buffer of 16",
    "later_offset_outside": "argument y (buffer 1, device float *): offset 20 lies outside the buffer of 16 bytes",
    "offset_without_buffer": "buffer 7: setBufferOffset needs a buffer there first",
    "offset_misaligned": "argument x (buffer 0, device const float *): offset 2 is not a multiple of 4",
    "bytes_over_4096": "argument scale (buffer 2, constant float &): setBytes takes 1 to 4096 bytes, got 4097",
    "bytes_empty": "setBytes takes 1 to 4096 bytes, got 0",
    "index_31": "buffer 31: the index must be below 31",
    "struct_too_small": "argument scale (buffer 2, constant float &): expected at least 4 bytes, got 2",
    "too_many_threads": "axpy: threadsPerThreadgroup (1025, 1, 1) exceeds maxTotalThreadsPerThreadgroup, 1024",
    "too_many_threads_for_kernel": "limited: threadsPerThreadgroup (65, 1, 1) exceeds maxTotalThreadsPerThreadgroup",
    "threads_overflow": "exceeds maxTotalThreadsPerThreadgroup, 1024",
    "no_threads_in_group": "axpy: threadsPerThreadgroup must not be 0 in any dimension, got (0, 1, 1)",
    "empty_grid": "axpy: the grid must not be empty in any dimension, got (0, 1, 1) threads",
    "grid_too_large": "axpy: the grid must be below 2^32 threads in each dimension, got (4294967296, 1, 1)",
    "groups_too_many": "axpy: the grid must be below 2^32 threads in each dimension",
    "threadgroup_length_missing": "argument values (threadgroup memory 0, threadgroup float *) has no length",
    "threadgroup_length_not_16": "the length must be a multiple of 16, got 20",
    "threadgroup_length_too_large": "32784 bytes exceed the limit of 32768",
    "threadgroup_sum_too_large": "wide: 32784 bytes of threadgroup memory (16384 of them declared in the kernel)",
    "no_pipeline": "no pipeline is set",
    "nil_pipeline": "setComputePipelineState: the pipeline is nil",
    "encoder_after_end": "compute encoder: used after endEncoding",
    "encoder_ended_twice": "compute encoder: used after endEncoding",
    "two_encoders": "a command encoder is already encoding to this command buffer",
    "commit_twice": "commit: the command buffer is already committed",
    "commit_with_open_encoder": "commit: the command buffer's encoder has not been ended",
    "encoder_after_commit": "computeCommandEncoder: the command buffer is already committed",
    "handler_after_commit": "addCompletedHandler: the command buffer is already committed",
    "wait_before_commit": "waitUntilCompleted: the command buffer is not committed",
    "unbalanced_debug_group": "popDebugGroup without a pushDebugGroup",
    "debug_group_left_open": "compute encoder: endEncoding with 1 open debug groups",
    "enqueue_after_commit": "enqueue: the command buffer is already committed",
    "scheduled_handler_after_commit": "addScheduledHandler: the command buffer is already committed",
    "threadgroup_struct_too_small": "(threadgroup memory 0, threadgroup Wide &): expected at least 32 bytes, got 16",
    "pipeline_without_function": "newComputePipelineState: the function is nil",
    "pipeline_of_too_many_threads": "axpy: maxTotalThreadsPerThreadgroup must be at most 1024, got 1025",
    "archive_without_descriptor": "newBinaryArchive: the descriptor is nil",
    "archive_of_no_function": "addComputePipelineFunctions: the function is nil",
    "constant_index_too_large": "function constants: 1 values from index 65536 on reach above 65535",
    "constant_range_wraps": "on reach above 65535",
    "constant_missing": "function 'maybe_bias': constant 'has_bias' (index 0, bool) needs a value",
    "constant_missing_in_values": "function 'maybe_bias': constant 'has_bias' (index 0, bool) needs a value",
    "constant_ill_typed": "constant 'has_bias' (index 0) is of type bool, got a value of type int",
    "constant_of_no_type": "MTLDataType 1 is no type of a function constant",
    "buffer_empty": "newBufferWithLength: the length must not be 0",
    "buffer_too_long": "exceed maxBufferLength",
    "no_copy_unaligned": "pointer and length must be non-zero multiples of the page size",
    "dispatch_sync_reentered": 'error: dispatch_sync on the queue "mine" from a block that already runs on it',
    "queue_left_is_asserted": 'the caller is not on the queue "mine"',
    "assert_queue_elsewhere": 'the caller is not on the queue "mine"',
    "stream_encoder_outside_queue": "MPSStream::commandEncoder() was called outside dispatch_sync",
    "stream_forgets_the_last_block": "error: dispatch: no pipeline is set",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """framework_cases.mm, built as the glue is: with the flags of the framework, against its library."""
    flags = runpy.run_path(str(SIMULATOR / "framework" / "flags.py"))
    torch_root = Path(torch.__file__).parent
    torch_includes = [torch_root / "include", torch_root / "include/torch/csrc/api/include"]
    library = SIMULATOR / "lib"
    output = tmp_path_factory.mktemp("framework") / "cases"
    command = [flags["COMPILER"], *flags["OBJCXX"], *flags["WARNINGS"], *flags["INCLUDES"]]
    command += ["-pthread", "-fuse-ld=lld-19"]
    command += [part for path in torch_includes for part in ("-isystem", str(path))]
    command += [str(Path(__file__).with_name("framework_cases.mm")), "-x", "c++", str(flags["PERSONALITY_SOURCE"])]
    command += [f"-L{library}", f"-L{torch_root / 'lib'}", "-lmpsk_metal", "-ltorch_cpu", "-lc10", *flags["LIBRARIES"]]
    command += ["-o", str(output)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr

    def run(*arguments, **environment):
        environment["LD_LIBRARY_PATH"] = f"{library}:{torch_root / 'lib'}"
        return subprocess.run(
            [output, *arguments], capture_output=True, text=True, timeout=50, env={**os.environ, **environment}
        )

    return run


@pytest.fixture(scope="module")
def outcomes(program, tmp_path_factory):
    metallib = compiler.compile(KERNELS, tmp_path_factory.mktemp("kernels") / "kernels.metallib")
    run = program(METALLIB=str(metallib))
    assert run.returncode == 0, run.stderr
    return dict(line.split("\t") for line in run.stdout.splitlines())


@pytest.mark.parametrize("case", WORKS)
def test_metal_works(outcomes, case):
    assert outcomes[case] == WORKS[case]


@pytest.mark.parametrize("case", REFUSED)
def test_metal_refuses(outcomes, case):
    assert outcomes[case].startswith("error: ")
    assert REFUSED[case] in outcomes[case]


def test_metal_kernel_fault_stays_in_its_buffer(outcomes):
    bad, good = outcomes["fault_is_an_error_of_its_buffer"].split(" | ")
    assert bad.startswith("5 ")
    assert "divergent" in bad
    assert "threadgroup_barrier" in bad
    assert good == "4 2 4 6 8 "


def test_metal_cases_are_all_checked(outcomes):
    assert set(outcomes) == {*WORKS, *REFUSED, "fault_is_an_error_of_its_buffer"}


@pytest.mark.parametrize(
    ("chip", "facts"),
    [
        ("", "Apple M4|applegpu_g16g|1110|11|32768"),
        ("m1", "Apple M1|applegpu_g13g|1000|11|32768"),
        ("m2pro", "Apple M2 Pro|applegpu_g14s|1100|11|32768"),
        ("m3max", "Apple M3 Max|applegpu_g15c|1110|11|32768"),
        ("m5", "Apple M5|applegpu_g17g|1111|11|32768"),
    ],
)
def test_metal_answers_for_the_chip(program, chip, facts):
    run = program("chip", MPSK_SIMULATE=chip)
    assert run.stdout == facts + "\n"
