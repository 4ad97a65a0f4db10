// A barrier with mem_device comes before the stores, and behind them one that orders threadgroup memory only.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void swap_halves(device const float* x, device float* scratch, device float* y,
                        uint i [[thread_position_in_grid]]) {
  threadgroup_barrier(mem_flags::mem_device);
  scratch[i] = x[i] * 2;  // fault: other
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (repaired) threadgroup_barrier(mem_flags::mem_device);
  y[i] = scratch[i ^ 32];  // fault: race threadgroup, scratch
}

template [[host_name("fault")]] [[kernel]] decltype(swap_halves<false>) swap_halves<false>;
template [[host_name("repaired")]] [[kernel]] decltype(swap_halves<true>) swap_halves<true>;
