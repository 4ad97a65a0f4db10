// Room for the partial sums of two simdgroups, in a threadgroup of four: two of them land in the array behind.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void centre(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[repaired ? 4 : 2];
  const float sum = simd_sum(x[t]);
  if (lane == 0) partial[simdgroup] = sum;  // fault: bounds, partial
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0;
  for (uint s = 0; s < simdgroups; ++s) total += partial[s];  // fault: bounds, partial
  y[t] = x[t] * 128 - total;
}

template [[host_name("fault")]] [[kernel]] decltype(centre<false>) centre<false>;
template [[host_name("repaired")]] [[kernel]] decltype(centre<true>) centre<true>;
