// Sums across threads.
#pragma once

#include <metal_stdlib>

namespace mpsk {

// The sum of `value`, a float or a vector of floats, over `count` simdgroups in a row, of which the caller's is one and
// `first` the first; every thread of them gets it. `partial` has a place for each simdgroup of the threadgroup. One
// barrier, which all threads of the threadgroup must reach; none where count, equal for all, is 1. A second sum may use
// the same `partial` only beyond another barrier: two in turn do for any number of sums.
template <typename V>
inline V simdgroups_sum(V value, uint first, uint count, uint lane, uint simdgroup, threadgroup V* partial) {
  value = metal::simd_sum(value);
  if (count == 1) {
    return value;
  }
  if (lane == 0) {
    partial[simdgroup] = value;
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);  // publishes partial
  return metal::simd_sum(lane < count ? partial[first + lane] : V(0.0f));
}

}  // namespace mpsk
