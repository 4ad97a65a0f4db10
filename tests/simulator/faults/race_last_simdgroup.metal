// A tree reduction whose last 32 values are left to one simdgroup without barriers between the steps, as was once the
// custom. A lane may add a partial sum that the step before has not stored yet.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reduce(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                   uint t [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  threadgroup float sums[64];
  sums[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t >= 32) return;
  for (uint step = 32; step > 0; step /= 2) {
    if (t < step) sums[t] += sums[t + step];  // fault: race simdgroup, sums
    if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  if (t == 0) y[group] = sums[0];
}

template [[host_name("fault")]] [[kernel]] decltype(reduce<false>) reduce<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reduce<true>) reduce<true>;
