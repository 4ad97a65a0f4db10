// A matrix is stored to a tile and its elements are read by other lanes than hold them, without a barrier.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void add_bias(device const float* x, device const float* bias, device float* y,
                     uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[64];
  simdgroup_float8x8 m;
  simdgroup_load(m, x, 8);
  simdgroup_store(m, tile, 8);  // fault: other
  if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = lane; k < 64; k += 32) y[k] = tile[k] + bias[k % 8];  // fault: race simdgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(add_bias<false>) add_bias<false>;
template [[host_name("repaired")]] [[kernel]] decltype(add_bias<true>) add_bias<true>;
