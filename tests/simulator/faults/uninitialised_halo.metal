// The tile has a cell for the right neighbour, which nobody fills where there is none.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void difference(device const float* x, device float* y, constant uint& n, uint i [[thread_position_in_grid]],
                       uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[33];
  tile[t] = x[i];
  if (t == 31 && i + 1 < n) {
    tile[32] = x[i + 1];
  } else if (repaired && t == 31) {
    tile[32] = x[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = tile[t + 1] - tile[t];  // fault: uninitialised, tile
}

template [[host_name("fault")]] [[kernel]] decltype(difference<false>) difference<false>;
template [[host_name("repaired")]] [[kernel]] decltype(difference<true>) difference<true>;
