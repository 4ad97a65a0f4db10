// A loop over rows ends one row late. The row behind the last is memory of another tensor: no crash, wrong numbers.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_columns(device const float* x, device float* y, constant uint& rows,
                        uint column [[thread_position_in_grid]], uint columns [[threads_per_grid]]) {
  float sum = 0;
  for (uint row = 0; repaired ? row < rows : row <= rows; ++row) {
    sum += x[row * columns + column];  // fault: bounds, x
  }
  y[column] = sum;
}

template [[host_name("fault")]] [[kernel]] decltype(sum_columns<false>) sum_columns<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_columns<true>) sum_columns<true>;
