// Bins in device memory are counted without atomics: threadgroups lose each other's counts.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void histogram(device const uint* x, device uint* bins, uint i [[thread_position_in_grid]]) {
  if (repaired) {
    atomic_fetch_add_explicit((device atomic_uint*)&bins[x[i]], 1, memory_order_relaxed);
  } else {
    bins[x[i]] += 1;  // fault: race grid, bins
  }
}

template [[host_name("fault")]] [[kernel]] decltype(histogram<false>) histogram<false>;
template [[host_name("repaired")]] [[kernel]] decltype(histogram<true>) histogram<true>;
