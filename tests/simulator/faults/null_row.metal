// A row that is absent is a null pointer, and a column is added to it: the address is no longer 0, and as wrong.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void gather_rows(device const float* x, device const int* rows, device float* y,
                        uint2 p [[thread_position_in_grid]]) {
  device const float* row = rows[p.y] < 0 ? nullptr : x + rows[p.y] * 4;
  if (repaired && !row) {
    y[p.y * 3 + p.x] = 0;
  } else {
    y[p.y * 3 + p.x] = row[p.x + 1];  // fault: null
  }
}

template [[host_name("fault")]] [[kernel]] decltype(gather_rows<false>) gather_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(gather_rows<true>) gather_rows<true>;
