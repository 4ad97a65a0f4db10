// The left neighbour of a tile's first element lies before the tile.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void difference(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float other[32];
  threadgroup float tile[32];
  other[t] = x[t] * 2;
  tile[t] = x[t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int left = repaired ? max(int(t) - 1, 0) : int(t) - 1;
  y[t] = other[31 - t] - tile[left];  // fault: bounds, tile
}

template [[host_name("fault")]] [[kernel]] decltype(difference<false>) difference<false>;
template [[host_name("repaired")]] [[kernel]] decltype(difference<true>) difference<true>;
