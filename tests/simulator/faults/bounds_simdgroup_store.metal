// An 8x8 block is stored at row 8 of a matrix with 12 rows, over what lies behind it.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void copy_rows(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]],
                      uint block [[threadgroup_position_in_grid]]) {
  if (!repaired || block == 0) {
    simdgroup_float8x8 m;
    simdgroup_load(m, x + block * 64, 8);
    simdgroup_store(m, y + block * 64, 8);  // fault: bounds, y
  } else {
    y[64 + lane] = x[64 + lane];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(copy_rows<false>) copy_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(copy_rows<true>) copy_rows<true>;
