// The tile reaches a function that is not inlined, and the function reads it without a barrier.
#include <metal_stdlib>
using namespace metal;

__attribute__((noinline)) float neighbour(threadgroup const float* tile, uint t) {
  return tile[t ^ 32];  // fault: race threadgroup, tile
}

template <bool repaired>
kernel void swap_halves(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[t];  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = neighbour(tile, t);
}

template [[host_name("fault")]] [[kernel]] decltype(swap_halves<false>) swap_halves<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_halves<true>) swap_halves<true>;
