// Two simdgroups go different ways, each as a whole, and each with matrix operations of its own.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  simdgroup_float8x8 m, two(2.0f), result;
  simdgroup_load(m, x, 8);
  if (simdgroup == 0) {
    simdgroup_multiply(result, m, two);
  } else {
    simdgroup_multiply_accumulate(result, m, m, two);
  }
  simdgroup_store(result, y + simdgroup * 64, 8);
}
