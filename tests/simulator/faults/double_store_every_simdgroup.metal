// The first lane of every simdgroup stores the row's result, where the first of the threadgroup should.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sum_rows(device const float* x, device float* y, uint t [[thread_index_in_threadgroup]],
                     uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                     uint simdgroup [[simdgroup_index_in_threadgroup]], uint row [[threadgroup_position_in_grid]]) {
  threadgroup float partial[2];
  const float sum = simd_sum(x[i]);
  if (lane == 0) partial[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (repaired ? t == 0 : lane == 0) y[row] = partial[0] + partial[1];  // fault: double store threadgroup, y
}

template [[host_name("fault")]] [[kernel]] decltype(sum_rows<false>) sum_rows<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sum_rows<true>) sum_rows<true>;
