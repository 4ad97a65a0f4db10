// Whole groups of four elements are stored and the tail of one to three is forgotten: it keeps what the memory held.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void twice(device const float* x, device float* y, constant uint& n,  // fault: not stored, y
                  uint i [[thread_position_in_grid]]) {
  if (i * 4 + 4 <= n) {
    for (uint k = i * 4; k < i * 4 + 4; ++k) y[k] = x[k] * 2;
  } else if (repaired) {
    for (uint k = i * 4; k < n; ++k) y[k] = x[k] * 2;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(twice<false>) twice<false>;
template [[host_name("repaired")]] [[kernel]] decltype(twice<true>) twice<true>;
