// The barrier of a tree reduction stands in front of the loop only. From the second step on, a simdgroup adds partial
// sums that another one may not have stored yet.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reduce(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                   uint t [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup float sums[256];
  sums[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint step = 128; step >= 32; step /= 2) {
    if (t < step) sums[t] += sums[t + step];  // fault: race threadgroup, sums
    if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (t >= 32) return;
  const float total = simd_sum(sums[t]);
  if (t == 0) y[group] = total;
}

template [[host_name("fault")]] [[kernel]] decltype(reduce<false>) reduce<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reduce<true>) reduce<true>;
