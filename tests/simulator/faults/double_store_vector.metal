// Stores of four floats, three apart, into a buffer that allows it: each overwrites an element of its neighbour's.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void store_rows(device const float* x, device packed_float4* y4, uint i [[thread_position_in_grid]]) {
  device float* row = (device float*)y4 + i * (repaired ? 4 : 3);
  *(device packed_float4*)row = packed_float4(x[i], 0, 0, -x[i]);  // fault: double store simdgroup, y4
}

template [[host_name("fault")]] [[kernel]] decltype(store_rows<false>) store_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(store_rows<true>) store_rows<true>;
