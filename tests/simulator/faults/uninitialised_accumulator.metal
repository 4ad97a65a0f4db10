// The result is added to an output that nobody has set to zero: memory that was just allocated holds what was there
// before, often zeros, until the first reuse.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void accumulate(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    y[i] = x[i];
  } else {
    y[i] += x[i];  // fault: uninitialised, y
  }
}

template [[host_name("fault")]] [[kernel]] decltype(accumulate<false>) accumulate<false>;
template [[host_name("repaired")]] [[kernel]] decltype(accumulate<true>) accumulate<true>;
