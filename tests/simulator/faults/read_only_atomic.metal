// A counter that is declared const is cast and counted.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void count(device const uint* counts, device atomic_uint* totals, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    atomic_fetch_add_explicit(totals, counts[i], memory_order_relaxed);
  } else {
    atomic_fetch_add_explicit((device atomic_uint*)counts, 1, memory_order_relaxed);  // fault: read-only, counts
    atomic_fetch_add_explicit(totals, 1, memory_order_relaxed);
  }
}

template [[host_name("fault")]] [[kernel]] decltype(count<false>) count<false>;
template [[host_name("repaired")]] [[kernel]] decltype(count<true>) count<true>;
