// The two halves of a split sum add to one output without atomics: both load the old value, and one half is lost.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_columns(device const float* x, device float* y, uint2 p [[thread_position_in_grid]]) {
  float sum = 0;
  for (uint k = 0; k < 4; ++k) sum += x[(p.y * 4 + k) * 32 + p.x];
  if (repaired) {
    atomic_fetch_add_explicit((device atomic_float*)&y[p.x], sum, memory_order_relaxed);
  } else {
    y[p.x] += sum;  // fault: race grid, y
  }
}

template [[host_name("fault")]] [[kernel]] decltype(sum_columns<false>) sum_columns<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_columns<true>) sum_columns<true>;
