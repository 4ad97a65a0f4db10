// An index of 2^46 was meant as "none": so far away that the upper bits of the address change.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void gather(device const float* x, device const ulong* index, device float* y,
                   uint i [[thread_position_in_grid]]) {
  const bool valid = index[i] < 64;
  y[i] = valid || !repaired ? x[index[i]] : 0;  // fault: bounds
}

template [[host_name("fault")]] [[kernel]] decltype(gather<false>) gather<false>;
template [[host_name("repaired")]] [[kernel]] decltype(gather<true>) gather<true>;
