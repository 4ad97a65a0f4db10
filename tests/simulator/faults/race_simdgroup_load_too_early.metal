// Lanes fill a tile and the simdgroup loads it as a matrix at once. The load is collective: it reads what all lanes
// have stored, and nothing has ordered those stores before it.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void double_matrix(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[64];
  for (uint k = lane; k < 64; k += 32) tile[k] = x[k] * 2;  // fault: other
  if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 m;
  simdgroup_load(m, tile, 8);  // fault: race simdgroup, tile
  simdgroup_store(m, y, 8);
}

template [[host_name("fault")]] [[kernel]] decltype(double_matrix<false>) double_matrix<false>;
template [[host_name("repaired")]] [[kernel]] decltype(double_matrix<true>) double_matrix<true>;
