// Lanes fill a tile, the simdgroup transposes it as a matrix, lanes read it: a simdgroup_barrier between each.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[64];
  for (uint k = lane; k < 64; k += 32) tile[k] = x[k];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 m;
  simdgroup_load(m, tile, 8, ulong2(0), true);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_store(m, tile, 8);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = lane; k < 64; k += 32) y[k] = tile[k];
}
