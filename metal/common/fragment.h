// 8x8 fragments of simdgroup_matrix: loads, where a lane's elements lie, rows reduced across lanes.
#pragma once

#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include <metal_stdlib>

namespace mpsk {

using namespace metal;

constant constexpr int frag_size = 8;  // rows and columns of a fragment

template <typename T>
using frag = simdgroup_matrix<T, frag_size, frag_size>;

// A lane holds the elements (row, col) and (row, col + 1) of every fragment, as thread_elements()[0] and [1]. Metal's
// specification leaves the layout open; this one holds for every element type and operand on M1 to M5.
struct frag_position {
  ushort row;
  ushort col;
};

inline frag_position position_in_frag(ushort lane) {
  frag_position position;
  position.row = ((lane >> 1) & 3) | ((lane >> 2) & 4);
  position.col = ((lane << 1) & 2) | ((lane >> 1) & 4);
  return position;
}

// Reductions over the four lanes that hold one row: their indices differ in bits 0 and 3. Each of them gets the result.
inline float row_max(float value) {
  value = max(value, simd_shuffle_xor(value, ushort(1)));
  return max(value, simd_shuffle_xor(value, ushort(8)));
}

inline float row_sum(float value) {
  value += simd_shuffle_xor(value, ushort(1));
  return value + simd_shuffle_xor(value, ushort(8));
}

// Loads a fragment whose rows (transposed: whose columns) are `pitch` elements apart in threadgroup memory.
template <typename T>
inline __attribute__((always_inline)) void load_frag(thread frag<T>& f, const threadgroup T* source, int pitch,
                                                     bool transposed) {
  if (transposed) {
    simdgroup_load(f, source, pitch, ulong2(0, 0), true);
  } else {
    simdgroup_load(f, source, pitch);
  }
}

}  // namespace mpsk
