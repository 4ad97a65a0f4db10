// A struct is copied as a whole by the thread that made it, and one member of it is read without a barrier.
#include <metal_stdlib>
using namespace metal;

struct Row {
  float sum, largest, smallest;
};

template <bool repaired>
kernel void describe(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                     uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup Row rows[2];
  const Row row = {simd_sum(x[i]), simd_max(x[i]), simd_min(x[i])};
  if (lane == 0) rows[simdgroup] = row;  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  y[i] = rows[simdgroup ^ 1].largest + row.sum;  // fault: race threadgroup, rows
}

template [[host_name("fault")]] [[kernel]] decltype(describe<false>) describe<false>;
template [[host_name("repaired")]] [[kernel]] decltype(describe<true>) describe<true>;
