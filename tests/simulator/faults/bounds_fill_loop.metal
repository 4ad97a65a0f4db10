// A loop that zeroes an array runs one element too far. A compiler may make one operation of it.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void clear(device float* y, constant uint& n) {
  for (uint k = 0; repaired ? k < n : k <= n; ++k) y[k] = 0;  // fault: bounds, y
}

template [[host_name("fault")]] [[kernel]] decltype(clear<false>) clear<false>;
template [[host_name("repaired")]] [[kernel]] decltype(clear<true>) clear<true>;
