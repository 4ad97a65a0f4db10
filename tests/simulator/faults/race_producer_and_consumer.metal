// One simdgroup loads, the other computes, and nothing makes the second wait for the first.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void square(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float tile[32];
  if (simdgroup == 0) tile[lane] = x[lane];  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 1) y[lane] = tile[lane] * tile[lane];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(square<false>) square<false>;
template [[host_name("repaired")]] [[kernel]] decltype(square<true>) square<true>;
