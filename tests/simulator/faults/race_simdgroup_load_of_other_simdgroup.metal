// Each simdgroup loads the tile that the other has filled, and waits for its own lanes only.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void swap_matrices(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tiles[2][64];
  for (uint k = lane; k < 64; k += 32) tiles[simdgroup][k] = x[simdgroup * 64 + k];  // fault: other
  if (repaired) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else {
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  simdgroup_float8x8 m;
  simdgroup_load(m, tiles[simdgroup ^ 1], 8);  // fault: race threadgroup, tiles
  simdgroup_store(m, y + simdgroup * 64, 8);
}

template [[host_name("fault")]] [[kernel]] decltype(swap_matrices<false>) swap_matrices<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_matrices<true>) swap_matrices<true>;
