// Only whole 8x8 blocks are stored as matrices; the two rows at the bottom edge are left out.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void copy_rows(device const float* x, device float* y, constant uint& rows,  // fault: not stored, y
                      uint lane [[thread_index_in_simdgroup]], uint block [[threadgroup_position_in_grid]]) {
  if (block * 8 + 8 <= rows) {
    simdgroup_float8x8 m;
    simdgroup_load(m, x + block * 64, 8);
    simdgroup_store(m, y + block * 64, 8);
  } else if (repaired) {
    for (uint k = block * 64 + lane; k < rows * 8; k += 32) y[k] = x[k];
  }
}

template [[host_name("fault")]] [[kernel]] decltype(copy_rows<false>) copy_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(copy_rows<true>) copy_rows<true>;
