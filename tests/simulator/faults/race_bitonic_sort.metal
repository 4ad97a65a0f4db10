// A bitonic sort of 32 values without barriers between its steps: a pair is compared before the step before has put its
// values in place.
#include <metal_stdlib>
using namespace metal;

template <bool repaired>
kernel void sort(device const float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float values[32];
  values[lane] = x[lane];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint size = 2; size <= 32; size *= 2) {
    for (uint step = size / 2; step > 0; step /= 2) {
      const uint left = lane, right = lane ^ step;
      if (left < right) {
        const float a = values[left];   // fault: race simdgroup, values
        const float b = values[right];  // fault: other
        const bool ascending = (left & size) == 0;
        values[left] = ascending ? min(a, b) : max(a, b);   // fault: other
        values[right] = ascending ? max(a, b) : min(a, b);  // fault: other
      }
      if (repaired) simdgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = values[lane];
}

template [[host_name("fault")]] [[kernel]] decltype(sort<false>) sort<false>;
template [[host_name("repaired")]] [[kernel]] decltype(sort<true>) sort<true>;
