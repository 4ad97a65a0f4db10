// Lanes exchange values through device memory behind a simdgroup_barrier that orders threadgroup memory only.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void swap_pairs(device const float* x, device float* scratch, device float* y,
                       uint i [[thread_position_in_grid]]) {
  scratch[i] = x[i] * 2;  // fault: other
  simdgroup_barrier(repaired ? mem_flags::mem_device : mem_flags::mem_threadgroup);
  y[i] = scratch[i ^ 1];  // fault: race simdgroup, scratch
}

template [[host_name("fault")]] [[kernel]] decltype(swap_pairs<false>) swap_pairs<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_pairs<true>) swap_pairs<true>;
