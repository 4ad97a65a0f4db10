// A matrix product in a branch that half of the lanes take. The operation needs the whole simdgroup: each lane holds
// two of the elements.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void square(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 a, b(0.0f);
  simdgroup_load(a, x, 8);
  if (repaired || lane < 16) {
    simdgroup_multiply(b, a, a);  // fault: divergence simdgroup
  }
  simdgroup_store(b, y, 8);
}

template [[host_name("fault")]] [[kernel]] decltype(square<false>) square<false>;
template [[host_name("repaired")]] [[kernel]] decltype(square<true>) square<true>;
