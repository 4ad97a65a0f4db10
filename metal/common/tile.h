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

// Elements between the rows of a tile. The 16 bytes of padding keep rows aligned for vectors and put the rows of a
// fragment into different banks.
template <typename T>
constexpr int tile_pitch(int columns) {
  return columns + vector_elements<T>();
}

// Threadgroup memory of a tile in uint4, the type that tiles are declared with because it aligns them to 16 bytes.
template <typename T>
constexpr int tile_vectors(int rows, int columns) {
  return rows * tile_pitch<T>(columns) / vector_elements<T>();
}

// Copies a Rows x Columns tile with all Threads of a threadgroup. Element (r, c) comes from source[r * row_stride + c *
// column_stride] and goes to element r * tile_pitch<T>(tile_columns) + c of `tile`. What lies at or past row_count or
// column_count is not read and becomes zero. `vectors` promises column_stride == 1 and 16-byte aligned rows.
template <typename T, int tile_rows, int tile_columns, int threads>
void load_tile(threadgroup uint4* tile, const device T* source, long row_stride, long column_stride, ulong row_count,
               ulong column_count, bool vectors, uint thread_index) {
  constexpr int vector = vector_elements<T>();
  constexpr int pitch = tile_pitch<T>(tile_columns);
  threadgroup T* elements = (threadgroup T*)tile;
  const int rows = int(min(row_count, ulong(tile_rows)));
  const int columns = int(min(column_count, ulong(tile_columns)));
  if (vectors) {
    constexpr int row_vectors = tile_columns / vector;
    for (int v = int(thread_index); v < tile_rows * row_vectors; v += threads) {
      const int r = v / row_vectors;
      const int c = v % row_vectors * vector;
      const device T* from = source + r * row_stride + c;
      threadgroup T* to = elements + r * pitch + c;
      if (r < rows && c + vector <= columns) {
        *(threadgroup uint4*)to = *(const device uint4*)from;
      } else {
        for (int e = 0; e < vector; ++e) {
          T element = T(0);
          if (r < rows && c + e < columns) {
            element = from[e];
          }
          to[e] = element;
        }
      }
    }
  } else {
    for (int e = int(thread_index); e < tile_rows * tile_columns; e += threads) {
      const int r = e / tile_columns;
      const int c = e % tile_columns;
      T element = T(0);
      if (r < rows && c < columns) {
        element = source[r * row_stride + c * column_stride];
      }
      elements[r * pitch + c] = element;
    }
  }
}

}  // namespace mpsk
