// Six rows of a tile are filled, and all eight are loaded as a matrix: what is in the others goes into the product.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void double_rows(device const float* x, device float* y, constant uint& rows,
                        uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[64];
  for (uint k = lane; k < 64; k += 32) {
    if (k < rows * 8) {
      tile[k] = x[k];
    } else if (repaired) {
      tile[k] = 0;
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 m, two(2.0f);
  simdgroup_load(m, tile, 8);  // fault: uninitialised, tile
  simdgroup_multiply(m, two, m);
  simdgroup_store(m, y, 8);
}

template [[host_name("fault")]] [[kernel]] decltype(double_rows<false>) double_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(double_rows<true>) double_rows<true>;
