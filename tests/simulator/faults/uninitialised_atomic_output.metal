// Counts are added to an output straight from the allocator.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void count(device const uint* x, device uint* y, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    uint same = 0;
    for (uint k = 0; k < 32; ++k) same += x[k] == i;
    y[i] = same;
  } else {
    atomic_fetch_add_explicit((device atomic_uint*)&y[x[i]], 1, memory_order_relaxed);  // fault: uninitialised, y
  }
}

template [[host_name("fault")]] [[kernel]] decltype(count<false>) count<false>;
template [[host_name("repaired")]] [[kernel]] decltype(count<true>) count<true>;
