// A gather takes the padding index -1 as a position.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void gather(device const float* x, device const int* index, device float* y,
                   uint i [[thread_position_in_grid]]) {
  if (repaired && index[i] < 0) {
    y[i] = 0;
  } else {
    y[i] = x[index[i]];  // fault: bounds, x
  }
}

template [[host_name("fault")]] [[kernel]] decltype(gather<false>) gather<false>;
template [[host_name("repaired")]] [[kernel]] decltype(gather<true>) gather<true>;
