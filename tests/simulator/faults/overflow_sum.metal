// The product of row and columns fits in 32 bits; with the offset of the column added, it does not.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void pick(device const float* x, device const uint* rows, constant uint& columns, constant uint& offset,
                 constant ulong& n, device float* y, uint i [[thread_position_in_grid]]) {
  const ulong product = rows[i] * columns;
  const ulong index = repaired ? product + offset : rows[i] * columns + offset;  // fault: other
  y[i] = index < n ? x[index] : -1;                                              // fault: overflow
}

template [[host_name("fault")]] [[kernel]] decltype(pick<false>) pick<false>;
template [[host_name("repaired")]] [[kernel]] decltype(pick<true>) pick<true>;
