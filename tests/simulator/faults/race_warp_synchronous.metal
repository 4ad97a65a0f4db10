// Lanes exchange values through memory and trust that they run in lockstep. Nothing promises that a store of one lane
// is visible to the others before a simdgroup_barrier: the compiler may move the load up, or keep the store in a
// register.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void swap_pairs(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                       uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[i];  // fault: other
  if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[t ^ 1];  // fault: race simdgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(swap_pairs<false>) swap_pairs<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_pairs<true>) swap_pairs<true>;
