// The threadgroup that arrives last adds up what all have stored. The counter is atomic, but relaxed: it says that the
// others have come past, not that their sums are visible.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reduce(device const uint* x, device uint* sums, device atomic_uint* arrived, device uint* y,
                   uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                   uint group [[threadgroup_position_in_grid]], uint groups [[threadgroups_per_grid]]) {
  const uint sum = simd_sum(x[i]);
  if (lane != 0) return;
  if (repaired) {
    atomic_fetch_add_explicit((device atomic_uint*)y, sum, memory_order_relaxed);
    return;
  }
  sums[group] = sum;  // fault: other
  if (atomic_fetch_add_explicit(arrived, 1, memory_order_relaxed) != groups - 1) return;
  uint total = 0;
  for (uint k = 0; k < groups; ++k) total += sums[k];  // fault: race grid, sums
  y[0] = total;
}

template [[host_name("fault")]] [[kernel]] decltype(reduce<false>) reduce<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reduce<true>) reduce<true>;
