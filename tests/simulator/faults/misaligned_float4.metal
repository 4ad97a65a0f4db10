// Rows of five floats are read as float4 from their start: three of four rows do not begin at a multiple of 16 bytes.
// The hardware drops the low bits of the address, or faults.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_rows(device const float* x, device float* y, uint row [[thread_position_in_grid]]) {
  device const float* start = x + row * 5;
  float4 v;
  if (repaired) {
    v = float4(*(device const packed_float4*)start);
  } else {
    v = *(device const float4*)start;  // fault: misaligned, x
  }
  y[row] = v.x + v.y + v.z + v.w + start[4];
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
