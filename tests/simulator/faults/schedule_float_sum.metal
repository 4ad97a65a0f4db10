// Floats are added atomically: each order of additions rounds in its own way.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum(device const float* x, device atomic_float* y, uint i [[thread_position_in_grid]],
                uint n [[threads_per_grid]]) {
  if (!repaired) {
    atomic_fetch_add_explicit(y, x[i], memory_order_relaxed);  // fault: schedule
  } else if (i == 0) {
    float total = 0;
    for (uint k = 0; k < n; ++k) total += x[k];
    atomic_store_explicit(y, total, memory_order_relaxed);
  }
}

template [[host_name("fault")]] [[kernel]] decltype(sum<false>) sum<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum<true>) sum<true>;
