// Quad functions, with all lanes and with whole quads only.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  float value = quad_sum(x[lane]);
  if (lane / 4 % 2 == 0) value += quad_shuffle_xor(x[lane], 1);
  y[lane] = value;
}
