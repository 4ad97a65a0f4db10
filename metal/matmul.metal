// out[z, m, n] = sum over k of a[z, m, k] * b[z, k, n], accumulated in fp32 and rounded once.

#include <metal_stdlib>

#include "common/fragment.h"
#include "common/tile.h"
#include "matmul_params.h"
#include "matmul_variants.h"

using namespace metal;
using namespace mpsk;

constant bool a_along_m [[function_constant(matmul_constant_a_along_m)]];
constant bool b_along_k [[function_constant(matmul_constant_b_along_k)]];
constant bool a_vectors [[function_constant(matmul_constant_a_vectors)]];
constant bool b_vectors [[function_constant(matmul_constant_b_vectors)]];

// Offset of batch z of an operand, in elements.
static long batch_offset(uint z, constant int64_t* strides, constant matmul_params& p) {
  long offset = 0;
  for (uint d = 0; d < p.batch_dims; ++d) {
    offset += long(z % p.batch_sizes[d]) * strides[d];
    z /= p.batch_sizes[d];
  }
  return offset;
}

// matmul_tile: a threadgroup of 2x2 simdgroups makes a bm x bn tile of out. Each simdgroup keeps a quarter of it in
// registers, as fragments, while tiles of a and b, bk deep, pass through threadgroup memory.
//
// Grid: x: tiles of out, in bands of several rows of tiles, down each column of a band, so that threadgroups that run
// at the same time share tiles of both operands in cache; z: batch. Threadgroup: (32, 2, 2).
//
// Threadgroup bytes: 64x64x16: f32 10240, f16 and bf16 6144 at most; 32x32x32: f32 9216, f16 and bf16 5120.
//
// Necessary: 2 m n k FLOP; a and b read once, out written once. What the kernel adds:
// - a is read ceil(n / bn) times and b ceil(m / bm) times, most of it from cache;
// - tiles at an edge multiply the zeros that fill them up;
// - bk of k cost two barriers, and 8 of k cost a simdgroup (bm + bn) / 16 fragment loads for bm bn / 256 fragment
//   multiplications: 0.5 for each at 64x64, 1 for each at 32x32;
// - bounds checks cost two comparisons for each 16 bytes loaded. At 64x64 a thread loads 2 (f16) or 4 of those for 32
//   fragment multiplications of about 17 cycles: too little for a second kernel for shapes that need no checks.
//
// a and b enter the multiplications in their own type: the products of two halves or bfloats are exact in fp32.
template <typename T, int bm, int bn, int bk>
[[kernel, max_total_threads_per_threadgroup(128)]] void matmul_tile(
    const device T* a [[buffer(matmul_buffer_a)]], const device T* b [[buffer(matmul_buffer_b)]],
    device T* out [[buffer(matmul_buffer_out)]], constant matmul_params& p [[buffer(matmul_buffer_params)]],
    uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simd_index [[simdgroup_index_in_threadgroup]]) {
  constexpr int threads = 128;
  constexpr int row_frags = bm / 2 / frag_size;  // fragments of a simdgroup
  constexpr int column_frags = bn / 2 / frag_size;
  // A tile keeps the orientation of its operand, so that the copy moves along the shorter stride on both sides.
  constexpr int a_upright = tile_vectors<T>(bm, bk), a_lying = tile_vectors<T>(bk, bm);
  constexpr int b_upright = tile_vectors<T>(bk, bn), b_lying = tile_vectors<T>(bn, bk);
  threadgroup uint4 a_tile[a_upright > a_lying ? a_upright : a_lying];
  threadgroup uint4 b_tile[b_upright > b_lying ? b_upright : b_lying];

  const uint band = group.x / (p.band * p.tiles_n) * p.band;  // its first row of tiles
  const uint band_rows = min(p.band, p.tiles_m - band);       // the last band may have fewer
  const uint in_band = group.x - band * p.tiles_n;
  const ulong first_row = ulong(band + in_band % band_rows) * bm;
  const ulong first_column = ulong(in_band / band_rows) * bn;
  const ulong row_count = p.m - first_row;
  const ulong column_count = p.n - first_column;
  a += batch_offset(group.z, p.a_batch_strides, p) + long(first_row) * p.a_stride_m;
  b += batch_offset(group.z, p.b_batch_strides, p) + long(first_column) * p.b_stride_n;
  out += (group.z * p.m + first_row) * p.n + first_column;

  const int row = int(simd_index >> 1) * (bm / 2);  // of this simdgroup's quarter in the tile
  const int column = int(simd_index & 1) * (bn / 2);
  frag<float> sums[row_frags][column_frags];
#pragma clang loop unroll(full)
  for (int i = 0; i < row_frags; ++i) {
#pragma clang loop unroll(full)
    for (int j = 0; j < column_frags; ++j) {
      sums[i][j] = make_filled_simdgroup_matrix<float, frag_size>(0.0f);
    }
  }

  for (ulong k = 0; k < p.k; k += bk) {
    const ulong k_count = p.k - k;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the previous tiles have been read
    if (a_along_m) {
      load_tile<T, bk, bm, threads>(a_tile, a, p.a_stride_k, p.a_stride_m, k_count, row_count, a_vectors, thread_index);
    } else {
      load_tile<T, bm, bk, threads>(a_tile, a, p.a_stride_m, p.a_stride_k, row_count, k_count, a_vectors, thread_index);
    }
    if (b_along_k) {
      load_tile<T, bn, bk, threads>(b_tile, b, p.b_stride_n, p.b_stride_k, column_count, k_count, b_vectors,
                                    thread_index);
    } else {
      load_tile<T, bk, bn, threads>(b_tile, b, p.b_stride_k, p.b_stride_n, k_count, column_count, b_vectors,
                                    thread_index);
    }
    a += bk * p.a_stride_k;
    b += bk * p.b_stride_k;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes both tiles

    const int a_pitch = tile_pitch<T>(a_along_m ? bm : bk);
    const int b_pitch = tile_pitch<T>(b_along_k ? bk : bn);
    const threadgroup T* a_quarter = (const threadgroup T*)a_tile + (a_along_m ? row : row * a_pitch);
    const threadgroup T* b_quarter = (const threadgroup T*)b_tile + (b_along_k ? column * b_pitch : column);
#pragma clang loop unroll(full)
    for (int s = 0; s < bk; s += frag_size) {
      frag<T> left[row_frags];
      frag<T> right[column_frags];
#pragma clang loop unroll(full)
      for (int i = 0; i < row_frags; ++i) {
        const int m = i * frag_size;
        load_frag(left[i], a_quarter + (a_along_m ? s * a_pitch + m : m * a_pitch + s), a_pitch, a_along_m);
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < column_frags; ++j) {
        const int n = j * frag_size;
        load_frag(right[j], b_quarter + (b_along_k ? n * b_pitch + s : s * b_pitch + n), b_pitch, b_along_k);
      }
#pragma clang loop unroll(full)
      for (int i = 0; i < row_frags; ++i) {
#pragma clang loop unroll(full)
        for (int j = 0; j < column_frags; ++j) {
          simdgroup_multiply_accumulate(sums[i][j], left[i], right[j], sums[i][j]);
        }
      }
    }
  }

  // Straight from registers, two elements at a time: 16-byte stores would take a trip through threadgroup memory, that
  // is bm * bn * 4 more bytes of it written and read, and two more barriers.
  const frag_position at = position_in_frag(ushort(lane));
#pragma clang loop unroll(full)
  for (int i = 0; i < row_frags; ++i) {
#pragma clang loop unroll(full)
    for (int j = 0; j < column_frags; ++j) {
      const float first = sums[i][j].thread_elements()[0];
      const float second = sums[i][j].thread_elements()[1];
      const ulong m = ulong(row + i * frag_size + at.row);
      const ulong n = ulong(column + j * frag_size + at.col);
      if (m < row_count && n < column_count) {
        out[m * p.n + n] = T(first);
      }
      if (m < row_count && n + 1 < column_count) {
        out[m * p.n + n + 1] = T(second);
      }
    }
  }
}

#define INSTANTIATE(dtype, T, bm, bn, bk)                                                \
  template [[host_name("matmul_tile_" #dtype "_bm" #bm "_bn" #bn "_bk" #bk)]] [[kernel]] \
  decltype(matmul_tile<T, bm, bn, bk>) matmul_tile<T, bm, bn, bk>;
MATMUL_TILE_VARIANTS(INSTANTIATE)
