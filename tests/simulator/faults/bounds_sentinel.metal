// A sentinel of 2^30 is used as an index: 4 GB away, where another tensor may well be.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void gather(device const float* x, device const uint* index, device float* y,
                   uint i [[thread_position_in_grid]]) {
  const bool valid = index[i] < 64;
  y[i] = valid || !repaired ? x[index[i]] : 0;  // fault: bounds, x
}

template [[host_name("fault")]] [[kernel]] decltype(gather<false>) gather<false>;
template [[host_name("repaired")]] [[kernel]] decltype(gather<true>) gather<true>;
