// An 8x8 block is loaded at row 8 of a matrix with 12 rows: its lower half lies behind the buffer.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void last_block(device const float* x, device float* y) {
  simdgroup_float8x8 m;
  simdgroup_load(m, x + (repaired ? 4 : 8) * 8, 8);  // fault: bounds, x
  simdgroup_store(m, y, 8);
}

template [[host_name("fault")]] [[kernel]] decltype(last_block<false>) last_block<false>;
template [[host_name("repaired")]] [[kernel]] decltype(last_block<true>) last_block<true>;
