// A reversal through a tile, without the barrier between its stores and its loads. The simdgroup that is ahead loads
// what the other has not stored yet: stale values, in some runs, on some chips.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                    uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[i];  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[63 - t];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
