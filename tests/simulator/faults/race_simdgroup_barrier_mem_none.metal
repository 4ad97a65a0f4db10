// A simdgroup_barrier with mem_none orders no memory: the lanes meet, the stores need not have arrived.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void swap_pairs(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                       uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[i];  // fault: other
  simdgroup_barrier(repaired ? mem_flags::mem_threadgroup : mem_flags::mem_none);
  y[i] = tile[t ^ 1];  // fault: race simdgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(swap_pairs<false>) swap_pairs<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_pairs<true>) swap_pairs<true>;
