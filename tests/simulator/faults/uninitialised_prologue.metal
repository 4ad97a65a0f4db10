// A double-buffered loop fetches the next tile while it works on this one, and nobody has fetched the first.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_reversed(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[2][64];
  if (repaired) tile[0][t] = x[t];
  float sum = 0;
  for (uint k = 0; k < 4; ++k) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (k + 1 < 4) tile[(k + 1) & 1][t] = x[(k + 1) * 64 + t];
    sum += tile[k & 1][63 - t];  // fault: uninitialised, tile
  }
  y[t] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_reversed<false>) sum_reversed<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_reversed<true>) sum_reversed<true>;
