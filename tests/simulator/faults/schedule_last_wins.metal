// All lanes that qualify store their index with an atomic exchange: the last one stays, whichever that is.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void find(device const uint* x, device atomic_uint* y, uint i [[thread_position_in_grid]]) {
  if (x[i] != 1) return;
  if (repaired) {
    atomic_fetch_max_explicit(y, i, memory_order_relaxed);
  } else {
    atomic_exchange_explicit(y, i, memory_order_relaxed);  // fault: schedule
  }
}

template [[host_name("fault")]] [[kernel]] decltype(find<false>) find<false>;
template [[host_name("repaired")]] [[kernel]] decltype(find<true>) find<true>;
