// A pipeline that fetches two tiles ahead needs three slots. With two, the tile that arrives is stored over the one
// that is in use.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_reversed(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  const uint slots = repaired ? 3 : 2;
  threadgroup float tile[3][64];
  tile[0][t] = x[t];
  tile[1][t] = x[64 + t];
  float sum = 0;
  for (uint k = 0; k < 6; ++k) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (k + 2 < 6) tile[(k + 2) % slots][t] = x[(k + 2) * 64 + t];  // fault: race threadgroup, tile
    sum += tile[k % slots][63 - t];                                 // fault: other
  }
  y[t] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_reversed<false>) sum_reversed<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_reversed<true>) sum_reversed<true>;
