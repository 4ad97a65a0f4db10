// Lanes change the elements that they hold, between matrix operations.
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 m;
  simdgroup_load(m, x, 8);
  m.thread_elements()[0] *= 2;
  m.thread_elements()[1] *= 2;
  simdgroup_store(m, y, 8);
}
