// The largest value falls into bin 16 of 16.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void histogram(device const float* x, device atomic_uint* bins, uint i [[thread_position_in_grid]]) {
  const uint bin = repaired ? min(uint(x[i] * 16), 15u) : uint(x[i] * 16);
  atomic_fetch_add_explicit(&bins[bin], 1, memory_order_relaxed);  // fault: bounds, bins
}

template [[host_name("fault")]] [[kernel]] decltype(histogram<false>) histogram<false>;
template [[host_name("repaired")]] [[kernel]] decltype(histogram<true>) histogram<true>;
