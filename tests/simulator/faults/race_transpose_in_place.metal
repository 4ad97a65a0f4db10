// An in-place transposition in which each thread moves one element: what it overwrites, the thread on the other side of
// the diagonal may not have read.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void transpose(device float* x, uint2 p [[thread_position_in_grid]]) {
  const uint here = p.y * 8 + p.x, there = p.x * 8 + p.y;
  if (!repaired) {
    x[there] = x[here];  // fault: race grid, x
  } else if (p.x < p.y) {
    const float value = x[there];
    x[there] = x[here];
    x[here] = value;
  }
}

template [[host_name("fault")]] [[kernel]] decltype(transpose<false>) transpose<false>;
template [[host_name("repaired")]] [[kernel]] decltype(transpose<true>) transpose<true>;
