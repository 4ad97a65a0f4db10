// A thread reads two halves as one word, of which another thread stores the second.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void negate_odd(device const half* x, device uint* y, uint t [[thread_index_in_threadgroup]]) {
  threadgroup uint words[32];
  threadgroup half* halves = (threadgroup half*)words;
  halves[t] = t % 2 ? -x[t] : x[t];  // fault: other
  if (repaired) threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 16) y[t] = words[t + 16];  // fault: race threadgroup, words
}

template [[host_name("fault")]] [[kernel]] decltype(negate_odd<false>) negate_odd<false>;
template [[host_name("repaired")]] [[kernel]] decltype(negate_odd<true>) negate_odd<true>;
