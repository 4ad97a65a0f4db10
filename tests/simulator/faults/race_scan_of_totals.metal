// A scan in two levels: the totals of the simdgroups to the left are added before those have stored them.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void scan(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                 uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float totals[4];
  float sum = simd_prefix_inclusive_sum(x[t]);
  if (lane == 31) totals[simdgroup] = sum;  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint s = 0; s < simdgroup; ++s) sum += totals[s];  // fault: race threadgroup, totals
  y[t] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(scan<false>) scan<false>;
template [[host_name("repaired")]] [[kernel]] decltype(scan<true>) scan<true>;
