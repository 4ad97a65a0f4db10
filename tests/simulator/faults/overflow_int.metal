// A signed index: row times columns passes 2^31, turns up again inside the buffer after 2^32, and reads a wrong row.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void first_column(device const float* x, device const int* rows, constant int& columns, constant long& n,
                         device float* y, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    const long index = long(rows[i]) * columns;
    y[i] = index < n ? x[index] : -1;
  } else {
    const int index = rows[i] * columns;    // fault: other
    y[i] = index < int(n) ? x[index] : -1;  // fault: overflow
  }
}

template [[host_name("fault")]] [[kernel]] decltype(first_column<false>) first_column<false>;
template [[host_name("repaired")]] [[kernel]] decltype(first_column<true>) first_column<true>;
