// The last threadgroup is moved back so that its tile fits, over elements that its neighbour stores as well. In place,
// or with an accumulating store, the overlap would be counted twice.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void twice(device const float* x, device float* y, constant uint& n, uint t [[thread_index_in_threadgroup]],
                  uint group [[threadgroup_position_in_grid]]) {
  const uint start = repaired ? group * 32 : min(group * 32, n - 32);
  if (start + t < n) y[start + t] = x[start + t] * 2;  // fault: double store grid, y
}

template [[host_name("fault")]] [[kernel]] decltype(twice<false>) twice<false>;
template [[host_name("repaired")]] [[kernel]] decltype(twice<true>) twice<true>;
