// Input and output are views of one buffer that do not overlap.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device float* y, device const float* x, uint i [[thread_position_in_grid]],
                  uint n [[threads_per_grid]]) {
  y[i] = x[n - 1 - i];
}
