// Both branches store to the tile and a compiler makes one store of the two; there is no barrier behind them.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse_magnitudes(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  if (x[t] < 0) {     // fault: other
    tile[t] = -x[t];  // fault: other
  } else {
    tile[t] = x[t];  // fault: other
  }
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = tile[63 - t];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(reverse_magnitudes<false>) reverse_magnitudes<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse_magnitudes<true>) reverse_magnitudes<true>;
