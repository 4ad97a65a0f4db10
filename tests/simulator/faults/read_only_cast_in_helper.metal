// The const is cast away in a helper that takes any pointer.
#include <metal_stdlib>
using namespace metal;

inline void store_first(device const void* to, float value) {
  *(device float*)to = value;  // fault: read-only, x
}

template <bool repaired>
kernel void negate(device const float* x, device float* y, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    y[i] = -x[i];
  } else {
    y[i] = -x[i];
    store_first(x + i, y[i]);
  }
}

template [[host_name("fault")]] [[kernel]] decltype(negate<false>) negate<false>;
template [[host_name("repaired")]] [[kernel]] decltype(negate<true>) negate<true>;
