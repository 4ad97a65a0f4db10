// Threadgroups draw tickets for the rows that they work on, which is sound, and store the results by their own
// position, which is not.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_rows(device const float* x, device atomic_uint* next, device float* y,
                     uint lane [[thread_index_in_simdgroup]], uint group [[threadgroup_position_in_grid]]) {
  uint row = 0;
  if (lane == 0) row = atomic_fetch_add_explicit(next, 1, memory_order_relaxed);
  row = simd_broadcast_first(row);
  const float sum = simd_sum(x[row * 32 + lane]);
  if (lane == 0) y[repaired ? row : group] = sum;  // fault: schedule
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
