// The barrier stands before the stores instead of behind them, where it orders nothing that matters: the loads still
// meet a tile that is half filled.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                    uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  if (!repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  tile[t] = x[i];  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[63 - t];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
