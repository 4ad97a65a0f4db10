// An index that grows by the pitch of a row from round to round, in 32 bits: row 4 of 2^30 columns is row 0 again.
#include <metal_stdlib>
using namespace metal;

template <typename Index>
kernel void sum_column(device const float* x, device float* y, constant uint& rows, constant uint& pitch,
                       constant ulong& n, uint column [[thread_position_in_grid]]) {
  float sum = 0;
  Index at = column;
  for (uint row = 0; row < rows; ++row) {
    if (at < n) sum += x[at];  // fault: overflow
    at += pitch;               // fault: other
  }
  y[column] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_column<uint>) sum_column<uint>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_column<ulong>) sum_column<ulong>;
