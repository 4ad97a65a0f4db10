// The exchange goes through device memory, but the barrier orders threadgroup memory only. The loads may be served from
// before the other simdgroup's stores.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void swap_halves(device const float* x, device float* scratch, device float* y,
                        uint i [[thread_position_in_grid]]) {
  scratch[i] = x[i] * 2;  // fault: other
  threadgroup_barrier(repaired ? mem_flags::mem_device : mem_flags::mem_threadgroup);
  y[i] = scratch[i ^ 32];  // fault: race threadgroup, scratch
}

template [[host_name("fault")]] [[kernel]] decltype(swap_halves<false>) swap_halves<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_halves<true>) swap_halves<true>;
