// A counter that all threadgroups update atomically is read plainly: the value may be one that was kept since long
// before, and a torn or cached one is allowed.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void count(device atomic_uint* counter, device uint* seen, uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);  // fault: other
  if (repaired) {
    seen[i] = atomic_load_explicit(counter, memory_order_relaxed) > 0;
  } else {
    seen[i] = *(device uint*)counter > 0;  // fault: race grid, counter
  }
}

template [[host_name("fault")]] [[kernel]] decltype(count<false>) count<false>;
template [[host_name("repaired")]] [[kernel]] decltype(count<true>) count<true>;
