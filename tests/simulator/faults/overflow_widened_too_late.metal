// The index is 64 bits wide, the product that makes it is not: row 4096 of 2^20 columns becomes row 0.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void first_column(device const float* x, device const uint* rows, constant uint& columns, constant ulong& n,
                         device float* y, uint i [[thread_position_in_grid]]) {
  const ulong index = repaired ? ulong(rows[i]) * columns : rows[i] * columns;  // fault: other
  y[i] = index < n ? x[index] : -1;                                             // fault: overflow
}

template [[host_name("fault")]] [[kernel]] decltype(first_column<false>) first_column<false>;
template [[host_name("repaired")]] [[kernel]] decltype(first_column<true>) first_column<true>;
