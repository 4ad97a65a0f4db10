// A grid-stride loop that strides by the threadgroup instead of by the grid: each threadgroup walks over the elements
// of all that come after it.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void twice(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                  uint grid [[threads_per_grid]], uint group [[threads_per_threadgroup]]) {
  for (uint k = i; k < 256; k += repaired ? grid : group) {
    y[k] = x[k] * 2;  // fault: double store grid, y
  }
}

template [[host_name("fault")]] [[kernel]] decltype(twice<false>) twice<false>;
template [[host_name("repaired")]] [[kernel]] decltype(twice<true>) twice<true>;
