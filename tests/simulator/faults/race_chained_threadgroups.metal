// Each threadgroup reads the total that its left neighbour stores in the same dispatch. Threadgroups run in any order,
// or at once.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void add_left_total(device const float* x, device float* totals, device float* y,
                           uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                           uint group [[threadgroup_position_in_grid]]) {
  const float total = simd_sum(x[i]);
  if (lane == 0) totals[group] = total;  // fault: other
  float left = 0;
  if (group > 0) left = repaired ? simd_sum(x[i - 32]) : totals[group - 1];  // fault: race grid, totals
  y[i] = x[i] + left;
}

template [[host_name("fault")]] [[kernel]] decltype(add_left_total<false>) add_left_total<false>;
template [[host_name("repaired")]] [[kernel]] decltype(add_left_total<true>) add_left_total<true>;
