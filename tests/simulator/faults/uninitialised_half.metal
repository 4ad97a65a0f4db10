// 31 halves are stored, and the 32nd, in the same word as the last of them, is read.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const half* x, device half* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup half tile[32];
  if (repaired || lane < 31) tile[lane] = x[lane];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = tile[31 - lane];  // fault: uninitialised, tile
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
