// A struct is stored member by member, one is forgotten, and the copy that is read brings the garbage along.
#include <metal_stdlib>
using namespace metal;

struct Pair {
  float value;
  uint index;
};

template <bool repaired>
kernel void find(device const float* x, device uint* y, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup Pair pairs[32];
  pairs[lane].value = x[lane];
  if (repaired) pairs[lane].index = lane;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  const Pair pair = pairs[31 - lane];         // fault: other
  y[lane] = pair.value > 0 ? pair.index : 0;  // fault: uninitialised, pairs
}

template [[host_name("fault")]] [[kernel]] decltype(find<false>) find<false>;
template [[host_name("repaired")]] [[kernel]] decltype(find<true>) find<true>;
