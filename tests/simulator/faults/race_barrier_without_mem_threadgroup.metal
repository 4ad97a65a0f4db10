// The exchange goes through threadgroup memory, but the barrier orders device memory only: the threads meet, their
// stores need not have arrived.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reverse(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                    uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = x[i];  // fault: other
  threadgroup_barrier(repaired ? mem_flags::mem_threadgroup : mem_flags::mem_device);
  y[i] = tile[63 - t];  // fault: race threadgroup, tile
}

template [[host_name("fault")]] [[kernel]] decltype(reverse<false>) reverse<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reverse<true>) reverse<true>;
