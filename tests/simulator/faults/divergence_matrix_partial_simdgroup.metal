// A matrix operation in a threadgroup of 16 threads, which has no whole simdgroup.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void copy(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]],
                 uint threads [[threads_per_simdgroup]], uint group [[threads_per_threadgroup]]) {
  if (repaired && group < threads) {
    for (uint k = lane; k < 64; k += group) y[k] = x[k];
    return;
  }
  simdgroup_float8x8 m;
  simdgroup_load(m, x, 8);   // fault: divergence simdgroup
  simdgroup_store(m, y, 8);  // fault: other
}

template [[host_name("fault")]] [[kernel]] decltype(copy<false>) copy<false>;
template [[host_name("repaired")]] [[kernel]] decltype(copy<true>) copy<true>;
