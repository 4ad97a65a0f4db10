// A pointer into the middle, and an index before it.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device const float* x, device float* y, uint i [[thread_position_in_grid]],
                  uint n [[threads_per_grid]]) {
  device const float* end = x + n;
  y[i] = end[-1 - int(i)];
}
