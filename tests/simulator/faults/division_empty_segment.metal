// The mean of a segment without elements, in integers. Metal leaves the quotient undefined; nothing stops the kernel.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void mean(device const int* sums, device const int* counts, device int* y, uint i [[thread_position_in_grid]]) {
  y[i] = repaired && counts[i] == 0 ? 0 : sums[i] / counts[i];  // fault: division
}

template [[host_name("fault")]] [[kernel]] decltype(mean<false>) mean<false>;
template [[host_name("repaired")]] [[kernel]] decltype(mean<true>) mean<true>;
