// Tiles of a matrix in device memory, copied into threadgroup memory.
#pragma once

#include <metal_stdlib>

namespace mpsk {

using namespace metal;

// Elements in 16 bytes, the widest load that a thread can issue.
template <typename T>
constexpr int vector_elements() {
  return 16 / sizeof(T);
}

// Elements between the rows of a tile: an odd number of 16 bytes, which keeps rows aligned for vectors and puts the
// rows of a fragment into different banks.
template <typename T>
constexpr int tile_pitch(int columns) {
  return (columns / vector_elements<T>() | 1) * vector_elements<T>();
}

// Threadgroup memory of a tile in uint4, the type that tiles are declared with because it aligns them to 16 bytes.
template <typename T>
constexpr int tile_vectors(int rows, int columns) {
  return rows * tile_pitch<T>(columns) / vector_elements<T>();
}

// Where the rows of a tile lie in its matrix: a stride apart,
struct strided_rows {
  long stride;
  int count;  // rows at or past it do not exist
  bool has(int r) const { return r < count; }
  bool has_all(int rows) const { return count >= rows; }
  long offset(int r) const { return r * stride; }
};

// or where indices say. A row whose index lies outside of the matrix does not exist.
struct gathered_rows {
  const device int* indices;
  long stride;
  int count;
  uint limit;  // rows of the matrix
  bool has(int r) const { return r < count && uint(indices[r]) < limit; }
  bool has_all(int) const { return false; }  // each index would have to be looked up
  long offset(int r) const { return indices[r] * stride; }
};

// How many of a tile's rows or columns lie before `end`.
inline int count_in_tile(ulong end, int size) { return int(min(end, ulong(size))); }

// Copies a tile_rows x tile_columns tile with `threads` threads, of which the caller is number thread_index. Element
// (r, c) comes from source[rows.offset(r) + c * column_stride] and goes to element r * tile_pitch<T>(tile_columns) + c
// of `tile`. What does not exist, and columns at or past column_count, are not read and become zero. `vectors` promises
// column_stride == 1 and 16-byte aligned rows.
template <typename T, int tile_rows, int tile_columns, int threads, typename Rows>
inline __attribute__((always_inline)) void load_tile(threadgroup uint4* tile, const device T* source, Rows rows,
                                                     long column_stride, int column_count, bool vectors,
                                                     uint thread_index) {
  constexpr int vector = vector_elements<T>();
  constexpr int pitch = tile_pitch<T>(tile_columns);
  threadgroup T* elements = (threadgroup T*)tile;
  constexpr int row_vectors = tile_columns / vector;
  constexpr int all = tile_rows * row_vectors;
  if (vectors && column_count == tile_columns && rows.has_all(tile_rows)) {
    // Most tiles, without a check for each vector: those would cost more instructions than all else here.
#pragma clang loop unroll(full)
    for (int first = 0; first < all; first += threads) {
      const int v = first + int(thread_index);
      if (first + threads <= all || v < all) {
        const int r = v / row_vectors;
        const int c = v % row_vectors * vector;
        *(threadgroup uint4*)(elements + r * pitch + c) = *(const device uint4*)(source + rows.offset(r) + c);
      }
    }
  } else if (vectors) {
    for (int v = int(thread_index); v < all; v += threads) {
      const int r = v / row_vectors;
      const int c = v % row_vectors * vector;
      const bool exists = rows.has(r);
      const device T* from = source + (exists ? rows.offset(r) + c : 0);
      threadgroup T* to = elements + r * pitch + c;
      if (exists && c + vector <= column_count) {
        *(threadgroup uint4*)to = *(const device uint4*)from;
      } else {
        for (int e = 0; e < vector; ++e) {
          T element = T(0);
          if (exists && c + e < column_count) {
            element = from[e];
          }
          to[e] = element;
        }
      }
    }
  } else {
    // A simdgroup writes two rows of 64 bytes at once: those four apart lie in different banks, neighbours do not.
    constexpr bool two_rows = tile_columns * sizeof(T) == 64 && sizeof(T) == 4 && tile_rows % 8 == 0;
    for (int e = int(thread_index); e < tile_rows * tile_columns; e += threads) {
      const int row = e / tile_columns;
      const int r = two_rows ? (row & ~5) | (row & 1) << 2 | (row >> 2 & 1) : row;
      const int c = e % tile_columns;
      T element = T(0);
      if (rows.has(r) && c < column_count) {
        element = source[rows.offset(r) + c * column_stride];
      }
      elements[r * pitch + c] = element;
    }
  }
}

// The same for rows and columns that are a stride apart each, of which row_count and column_count exist.
template <typename T, int tile_rows, int tile_columns, int threads>
inline __attribute__((always_inline)) void load_tile(threadgroup uint4* tile, const device T* source, long row_stride,
                                                     long column_stride, ulong row_count, ulong column_count,
                                                     bool vectors, uint thread_index) {
  load_tile<T, tile_rows, tile_columns, threads>(
      tile, source, strided_rows{row_stride, count_in_tile(row_count, tile_rows)}, column_stride,
      count_in_tile(column_count, tile_columns), vectors, thread_index);
}

}  // namespace mpsk
