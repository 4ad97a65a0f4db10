// Two reductions in a row use one scratch array. Without a barrier between them, the second stores its partial sums
// over maxima that another simdgroup has not read yet.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void centre(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                   uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[2];
  const float mine = simd_max(x[t]);
  if (lane == 0) partial[simdgroup] = mine;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float value = x[t] - max(mine, partial[simdgroup ^ 1]);  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  const float sum = simd_sum(value);
  if (lane == 0) partial[simdgroup] = sum;  // fault: race threadgroup, partial
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = sum + partial[simdgroup ^ 1];
}

template [[host_name("fault")]] [[kernel]] decltype(centre<false>) centre<false>;
template [[host_name("repaired")]] [[kernel]] decltype(centre<true>) centre<true>;
