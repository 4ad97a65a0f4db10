// The missing barrier is inside a helper that is inlined: the loads of the partial sums meet stores that other
// simdgroups are still to make.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
float sum_over_threadgroup(float value, threadgroup float* partial, uint lane, uint simdgroup) {
  const float sum = simd_sum(value);
  if (lane == 0) partial[simdgroup] = sum;  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  return partial[simdgroup ^ 1] + sum;  // fault: race threadgroup, partial
}

template <bool repaired>
kernel void centre(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[2];
  y[i] = x[i] * 64 - sum_over_threadgroup<repaired>(x[i], partial, lane, simdgroup);
}

template [[host_name("fault")]] [[kernel]] decltype(centre<false>) centre<false>;
template [[host_name("repaired")]] [[kernel]] decltype(centre<true>) centre<true>;
