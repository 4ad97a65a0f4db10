// The grid is rounded up to whole threadgroups and the threads past the end are not sent away: they write over what
// lies behind the output.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void fill(device float* y, constant uint& n, uint i [[thread_position_in_grid]]) {
  if (repaired && i >= n) return;
  y[i] = i;  // fault: bounds, y
}

template [[host_name("fault")]] [[kernel]] decltype(fill<false>) fill<false>;
template [[host_name("repaired")]] [[kernel]] decltype(fill<true>) fill<true>;
