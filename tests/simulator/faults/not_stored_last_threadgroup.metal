// The number of threadgroups was rounded down: the elements behind the last whole one are never stored.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void twice(device const float* x, device float* y, constant uint& n,  // fault: not stored, y
                  uint t [[thread_index_in_threadgroup]], uint group [[threadgroup_position_in_grid]]) {
  const uint groups = repaired ? (n + 31) / 32 : n / 32;
  const uint i = group * 32 + t;
  if (group < groups && i < n) y[i] = x[i] * 2;
}

template [[host_name("fault")]] [[kernel]] decltype(twice<false>) twice<false>;
template [[host_name("repaired")]] [[kernel]] decltype(twice<true>) twice<true>;
