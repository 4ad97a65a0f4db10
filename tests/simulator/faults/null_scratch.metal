// Scratch memory is provided only for threadgroups of more than one simdgroup, and used by all.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void exchange(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                     uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float memory[64];
  threadgroup float* scratch = simdgroups > 1 || repaired ? memory : nullptr;
  scratch[t] = x[t];  // fault: null
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = scratch[31 - t];  // fault: null
}

template [[host_name("fault")]] [[kernel]] decltype(exchange<false>) exchange<false>;
template [[host_name("repaired")]] [[kernel]] decltype(exchange<true>) exchange<true>;
