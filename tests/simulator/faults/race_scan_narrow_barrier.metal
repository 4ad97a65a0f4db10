// A scan over 128 threads whose steps are separated by simdgroup barriers: from the step of 32 on, sums come from other
// simdgroups, which nobody waits for.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void scan(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float sums[2][128];
  sums[0][t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint from = 0;
  for (uint step = 1; step < 128; step *= 2) {
    const float left = t >= step ? sums[from][t - step] : 0;  // fault: race threadgroup, sums
    sums[1 - from][t] = sums[from][t] + left;                 // fault: other
    from = 1 - from;
    if (repaired) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
    } else {
      simdgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
  y[t] = sums[from][t];
}

template [[host_name("fault")]] [[kernel]] decltype(scan<false>) scan<false>;
template [[host_name("repaired")]] [[kernel]] decltype(scan<true>) scan<true>;
