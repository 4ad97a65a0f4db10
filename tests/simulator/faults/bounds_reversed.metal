// A reversal that mirrors at n instead of n - 1.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                    uint n [[threads_per_grid]]) {
  y[i] = x[n - i - (repaired ? 1 : 0)];  // fault: bounds, x
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
