// Threads append what they keep at a counter. No element is lost, but the order is that in which the counter was
// reached.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void keep_odd(device const uint* x, device uint* y, device atomic_uint* count,
                     uint i [[thread_position_in_grid]]) {
  if (x[i] % 2 == 0) return;
  uint at = atomic_fetch_add_explicit(count, 1, memory_order_relaxed);
  if (repaired) {
    at = 0;
    for (uint k = 0; k < i; ++k) at += x[k] % 2;
  }
  y[at] = x[i];  // fault: schedule
}

template [[host_name("fault")]] [[kernel]] decltype(keep_odd<false>) keep_odd<false>;
template [[host_name("repaired")]] [[kernel]] decltype(keep_odd<true>) keep_odd<true>;
