// What a dispatch has stored, the next one reads and overwrites, with other threads: dispatches are ordered.
#include <metal_stdlib>
using namespace metal;

kernel void clean(device float* x, uint i [[thread_position_in_grid]], uint n [[threads_per_grid]]) {
  const uint partner = n - 1 - i;
  if (i < partner) {
    const float value = x[partner];
    x[partner] = x[i];
    x[i] = value + 1;
  }
}
