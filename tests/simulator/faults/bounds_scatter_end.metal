// A scatter takes the index n, which is one past the last, as "nowhere" but writes there all the same.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void scatter(device const float* x, device const uint* index, device float* y, constant uint& n,
                    uint i [[thread_position_in_grid]]) {
  if (!repaired || index[i] < n) y[index[i]] = x[i];  // fault: bounds, y
}

template [[host_name("fault")]] [[kernel]] decltype(scatter<false>) scatter<false>;
template [[host_name("repaired")]] [[kernel]] decltype(scatter<true>) scatter<true>;
