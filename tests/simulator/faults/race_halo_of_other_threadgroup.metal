// Two steps of a stencil in one dispatch. A barrier, with mem_device too, reaches its own threadgroup only: at the
// edges the second step reads what the neighbours may not have stored.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void two_steps(device const float* x, device float* first, device float* y, uint i [[thread_position_in_grid]],
                      uint n [[threads_per_grid]]) {
  const uint left = (i + n - 1) % n, right = (i + 1) % n;
  first[i] = x[left] + x[right];  // fault: other
  threadgroup_barrier(mem_flags::mem_device);
  if (repaired) {
    y[i] = x[(i + n - 2) % n] + 2 * x[i] + x[(i + 2) % n];
  } else {
    y[i] = first[left] + first[right];  // fault: race grid, first
  }
}

template [[host_name("fault")]] [[kernel]] decltype(two_steps<false>) two_steps<false>;
template [[host_name("repaired")]] [[kernel]] decltype(two_steps<true>) two_steps<true>;
