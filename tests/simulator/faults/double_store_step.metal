// Each thread stores four elements and starts three behind its neighbour.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void spread(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  for (uint k = 0; k < 4; ++k) {
    y[i * (repaired ? 4 : 3) + k] = x[i];  // fault: double store simdgroup, y
  }
}

template [[host_name("fault")]] [[kernel]] decltype(spread<false>) spread<false>;
template [[host_name("repaired")]] [[kernel]] decltype(spread<true>) spread<true>;
