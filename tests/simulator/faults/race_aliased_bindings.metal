// A reversal that is right for two buffers and called with one buffer bound twice: a threadgroup overwrites what the
// other has yet to read.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                    uint n [[threads_per_grid]]) {
  if (!repaired) {
    y[i] = x[n - 1 - i];  // fault: race grid
  } else if (i < n / 2) {
    const float value = x[n - 1 - i];
    y[n - 1 - i] = x[i];
    y[i] = value;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
