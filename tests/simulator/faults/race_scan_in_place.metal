// A scan after Hillis and Steele in one buffer needs two barriers a step. Without the one between load and store, a
// lane reads its left neighbour's sum of this step instead of the last.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void scan(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float sums[32];
  sums[lane] = x[lane];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint step = 1; step < 32; step *= 2) {
    const float left = lane >= step ? sums[lane - step] : 0;  // fault: other
    if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
    sums[lane] += left;  // fault: race simdgroup, sums
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  y[lane] = sums[lane];
}

template [[host_name("fault")]] [[kernel]] decltype(scan<false>) scan<false>;
template [[host_name("repaired")]] [[kernel]] decltype(scan<true>) scan<true>;
