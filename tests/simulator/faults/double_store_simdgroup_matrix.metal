// Both simdgroups store their product to the same block of the output: the block index lacks the simdgroup.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void double_matrices(device const float* x, device float* y, uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  simdgroup_float8x8 m, two(2.0f);
  simdgroup_load(m, x + simdgroup * 64, 8);
  simdgroup_multiply(m, two, m);
  simdgroup_store(m, repaired ? y + simdgroup * 64 : y, 8);  // fault: double store threadgroup, y
}

template [[host_name("fault")]] [[kernel]] decltype(double_matrices<false>) double_matrices<false>;
template [[host_name("repaired")]] [[kernel]] decltype(double_matrices<true>) double_matrices<true>;
