// Half of the lanes have returned when the matrix is loaded.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void copy(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  if (!repaired && lane >= 16) return;
  simdgroup_float8x8 m;
  simdgroup_load(m, x, 8);   // fault: divergence simdgroup
  simdgroup_store(m, y, 8);  // fault: other
}

template [[host_name("fault")]] [[kernel]] decltype(copy<false>) copy<false>;
template [[host_name("repaired")]] [[kernel]] decltype(copy<true>) copy<true>;
