// A matrix is stored back to where it was loaded from, through a cast.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void double_matrix(device const float* x, device float* y) {
  simdgroup_float8x8 m, two(2.0f);
  simdgroup_load(m, x, 8);
  simdgroup_multiply(m, two, m);
  simdgroup_store(m, repaired ? y : (device float*)x, 8);  // fault: read-only, x
  if (!repaired) simdgroup_store(m, y, 8);
}

template [[host_name("fault")]] [[kernel]] decltype(double_matrix<false>) double_matrix<false>;
template [[host_name("repaired")]] [[kernel]] decltype(double_matrix<true>) double_matrix<true>;
