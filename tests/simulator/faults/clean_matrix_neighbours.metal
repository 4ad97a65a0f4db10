// Two simdgroups store blocks side by side into the same rows of a tile.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                  uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tile[8][16];
  simdgroup_float8x8 m;
  simdgroup_load(m, x + simdgroup * 8, 16);
  simdgroup_store(m, &tile[0][simdgroup * 8], 16);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint k = t; k < 128; k += 64) y[k] = tile[k / 16][k % 16];
}
