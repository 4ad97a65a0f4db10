// Two simdgroups store their 8x8 blocks four columns apart: the columns in which they meet hold either's values.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void join_matrices(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tile[8][16];
  simdgroup_float8x8 m;
  simdgroup_load(m, x + simdgroup * 64, 8);
  simdgroup_store(m, &tile[0][simdgroup * (repaired ? 8 : 4)], 16);  // fault: race threadgroup, tile
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = tile[t / 8][t % 8];
}

template [[host_name("fault")]] [[kernel]] decltype(join_matrices<false>) join_matrices<false>;
template [[host_name("repaired")]] [[kernel]] decltype(join_matrices<true>) join_matrices<true>;
