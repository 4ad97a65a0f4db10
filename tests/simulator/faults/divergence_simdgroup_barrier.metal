// A simdgroup_barrier that half of the lanes reach.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void swap_low(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[32];
  tile[lane] = x[lane];
  if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
  if (lane < 16) {
    if (!repaired) simdgroup_barrier(mem_flags::mem_threadgroup);  // fault: divergence simdgroup
    y[lane] = tile[lane ^ 1];
  } else {
    y[lane] = x[lane];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(swap_low<false>) swap_low<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_low<true>) swap_low<true>;
