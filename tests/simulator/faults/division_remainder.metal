// The period 0 stands for "not periodic" and is divided by.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void wrap(device const uint* x, device uint* y, constant uint& period, uint i [[thread_position_in_grid]]) {
  y[i] = repaired && period == 0 ? x[i] : x[i] % period;  // fault: division
}

template [[host_name("fault")]] [[kernel]] decltype(wrap<false>) wrap<false>;
template [[host_name("repaired")]] [[kernel]] decltype(wrap<true>) wrap<true>;
