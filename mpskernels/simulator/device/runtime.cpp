// The functions that compiled kernels call; msl/mpsk/runtime.h declares them to the kernels.

#include "executor.h"

#define MPSK_KERNEL_API extern "C" __attribute__((visibility("default"), used))

using mpsk::device::Combine;
using mpsk::device::LaneState;
using mpsk::device::Worker;

MPSK_KERNEL_API void mpsk_simd(void* payload, Combine combine) {
  Worker::current()->simd(payload, combine, /*is_operation=*/true, __builtin_return_address(0));
}

MPSK_KERNEL_API void mpsk_meet(void* payload, Combine combine) {
  Worker::current()->simd(payload, combine, /*is_operation=*/false, __builtin_return_address(0));
}

MPSK_KERNEL_API void mpsk_threadgroup_barrier(unsigned flags) {
  Worker::current()->barrier(LaneState::threadgroup_barrier, flags, __builtin_return_address(0));
}

MPSK_KERNEL_API void mpsk_simdgroup_barrier(unsigned flags) {
  Worker::current()->barrier(LaneState::simdgroup_barrier, flags, __builtin_return_address(0));
}

MPSK_KERNEL_API void mpsk_fault(const char* message) { Worker::current()->fault("divergence", message); }

// Called by kernels before an integer division that would trap on the host. The argument starts with the source
// position.
namespace {
struct SourcePosition {
  const char* file;
  unsigned line, column;
};
}  // namespace

MPSK_KERNEL_API void __ubsan_handle_divrem_overflow(const SourcePosition* at, unsigned long, unsigned long) {
  Worker::current()->divided(at->file, at->line);
}
