// The tile is stored four floats at a time and read one at a time: every read is of a part of what another simdgroup
// stores, without a barrier.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void rotate(device const float4* x, device float* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float4 tile[64];
  threadgroup const float* values = (threadgroup const float*)tile;
  tile[t] = x[t];  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = 0; k < 4; ++k) y[k * 64 + t] = values[(t * 4 + k + 128) % 256];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(rotate<false>) rotate<false>;
template [[host_name("repaired")]] [[kernel]] decltype(rotate<true>) rotate<true>;
