// The maximum of numbers and the sum of their exponentials, in one pass: online softmax (Milakov and Gimelshein, 2018).
#pragma once

#include <metal_stdlib>

namespace mpsk {

constant constexpr float lowest_score = -3.4e38f;  // finite; what a masked score becomes

// A score below -3e38 takes no part, such as -INFINITY, with which nothing is computed. Told by its bits, which fast
// math leaves alone: a NaN takes part.
inline bool masked(float score) { return as_type<uint>(score) - 0xff61b1e7u <= 0xff800000u - 0xff61b1e7u; }

struct online {
  float max = lowest_score;
  float sum = 0.0f;  // of exp(score - max); 0 where there is none

  // exp(score - max), 0 for a masked one.
  float part(float score) const { return masked(score) ? 0.0f : metal::precise::exp(score - max); }

  // Raises max; `score` may be masked.
  void raise(float score) {
    const float higher = metal::max(max, score);
    sum *= part_of(max, higher);
    max = higher;
  }

  static float part_of(float score, float max) { return masked(score) ? 0.0f : metal::precise::exp(score - max); }
};

// Over the simdgroup.
inline online simd_online(online mine) {
  online all;
  all.max = metal::simd_max(mine.max);
  all.sum = metal::simd_sum(mine.sum * online::part_of(mine.max, all.max));
  return all;
}

// Over `count` simdgroups in a row, of which the caller's is one and `first` the first; every thread of them gets it.
// `partial` has a float2 for each simdgroup of the threadgroup and is used once. One barrier, which all threads of the
// threadgroup must reach; none where count, equal for all, is 1.
inline online simdgroups_online(online mine, uint first, uint count, uint lane, uint simdgroup,
                                threadgroup float2* partial) {
  online all = simd_online(mine);
  if (count == 1) {
    return all;
  }
  if (lane == 0) {
    partial[simdgroup] = float2(all.max, all.sum);
  }
  metal::threadgroup_barrier(metal::mem_flags::mem_threadgroup);  // publishes partial
  online other;
  if (lane < count) {
    other.max = partial[first + lane].x;
    other.sum = partial[first + lane].y;
  }
  return simd_online(other);
}

}  // namespace mpsk
