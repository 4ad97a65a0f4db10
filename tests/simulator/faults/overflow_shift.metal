// Rows of 2^22 elements, found by a shift: row 1024 has no bits left in 32.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void first_column(device const float* x, device const uint* rows, constant ulong& n, device float* y,
                         uint i [[thread_position_in_grid]]) {
  const ulong index = repaired ? ulong(rows[i]) << 22 : rows[i] << 22;  // fault: other
  y[i] = index < n ? x[index] : -1;                                     // fault: overflow
}

template [[host_name("fault")]] [[kernel]] decltype(first_column<false>) first_column<false>;
template [[host_name("repaired")]] [[kernel]] decltype(first_column<true>) first_column<true>;
