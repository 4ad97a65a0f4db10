// A threadgroup of 48 threads has two simdgroups, and all 32 partial sums are added as if it had 32.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void reduce(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]],
                   uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float partial[32];
  const float sum = simd_sum(x[t]);
  if (lane == 0) partial[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup > 0) return;
  float value = 0;
  if (!repaired || lane < simdgroups) value = partial[lane];  // fault: uninitialised, partial
  const float total = simd_sum(value);
  if (t == 0) y[0] = total;
}

template [[host_name("fault")]] [[kernel]] decltype(reduce<false>) reduce<false>;
template [[host_name("repaired")]] [[kernel]] decltype(reduce<true>) reduce<true>;
