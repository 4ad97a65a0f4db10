// All lanes meet in simd_sum, which hands values from lane to lane but orders no memory: the loads behind it may still
// miss the stores before it.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void centre_reversed(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[32];
  tile[lane] = x[lane];  // fault: other
  const float total = simd_sum(x[lane]);
  if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = tile[31 - lane] * 32 - total;  // fault: race simdgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(centre_reversed<false>) centre_reversed<false>;
template [[host_name("repaired")]] [[kernel]] decltype(centre_reversed<true>) centre_reversed<true>;
