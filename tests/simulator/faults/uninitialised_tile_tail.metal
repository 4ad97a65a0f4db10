// The last tile is filled up to the row's end and read whole.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_reversed(device const float* x, device float* y, constant uint& n,
                         uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  if (t < n) {
    tile[t] = x[t];
  } else if (repaired) {
    tile[t] = 0;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = tile[63 - t];  // fault: uninitialised, tile
}

template [[host_name("fault")]] [[kernel]] decltype(sum_reversed<false>) sum_reversed<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_reversed<true>) sum_reversed<true>;
