// matmul for products of a few rows: memory-bound, so b is read once and nothing else matters.
//
// The glue brings products of a few columns here as well, with a and b swapped.

#include <metal_stdlib>

#include "common/tile.h"
#include "matmul_constants.h"
#include "matmul_params.h"
#include "matmul_variants.h"

using namespace metal;
using namespace mpsk;

// Consecutive elements as they were loaded, 16 bytes of them; fp32 on request, four at a time. A bfloat becomes a float
// by a shift, on chips without instructions for it as well.
template <typename T>
struct chunk {
  uint4 raw;
  float4 four(int i) const { return float4(as_type<vec<T, 4>>(i == 0 ? raw.xy : raw.zw)); }
};
template <>
inline float4 chunk<float>::four(int) const {
  return as_type<float4>(raw);
}
template <>
inline float4 chunk<bfloat>::four(int i) const {
  const uint2 pairs = i == 0 ? raw.xy : raw.zw;
  return as_type<float4>(uint4(pairs.x << 16, pairs.x & 0xffff0000u, pairs.y << 16, pairs.y & 0xffff0000u));
}

// A chunk of elements that are `stride` apart.
template <typename T>
chunk<T> gather_chunk(const device T* from, long stride) {
  chunk<T> result;
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    result.raw[i] = as_type<uint>(vec<T, 2>(from[2 * i * stride], from[(2 * i + 1) * stride]));
  }
  return result;
}
inline chunk<float> gather_chunk(const device float* from, long stride) {
  return {as_type<uint4>(float4(from[0], from[stride], from[2 * stride], from[3 * stride]))};
}

// matmul_skinny_k: for b whose shorter stride is that of k. A threadgroup walks matmul_skinny_columns columns of b
// along k. Its simdgroups take 512 bytes of each in turn, keep `rows` sums for each, and add them up in the end, in
// order: as many threadgroups as the chip wants, without a second launch for splits of k.
//
// Grid: x: columns, by matmul_skinny_columns; y: splits of k; z: batch. Threadgroup: (32, matmul_skinny_k_simdgroups).
// Threadgroup bytes: 128 * rows * products.
// Chosen for at most `rows` rows.
// Necessary: b read once: 2 rows FLOP for each of its elements. What the kernel adds:
// - a is read ceil(n / matmul_skinny_columns) times, from cache: rows / matmul_skinny_columns of the bytes of b;
// - a last threadgroup whose columns do not all exist reads the last one again for each that is missing, and so it is
//   with rows;
// - one barrier.
template <typename T, int rows, int products>
[[kernel, max_total_threads_per_threadgroup(32 * matmul_skinny_k_simdgroups)]] void matmul_skinny_k(
    const device T* a [[buffer(matmul_buffer_a)]], const device T* b [[buffer(matmul_buffer_b)]],
    device T* out [[buffer(matmul_buffer_out)]], constant matmul_params& p [[buffer(matmul_buffer_params)]],
    device float* partials [[buffer(matmul_buffer_partials), function_constant(is_partial)]],
    const device T* bias [[buffer(matmul_buffer_bias), function_constant(has_bias)]],
    const device T* residual [[buffer(matmul_buffer_residual), function_constant(has_residual)]],
    device T* preactivation [[buffer(matmul_buffer_preactivation), function_constant(has_preactivation)]],
    device T* up [[buffer(matmul_buffer_up), function_constant(has_preactivation)]],
    const device T* second_b [[buffer(matmul_buffer_second_b), function_constant(has_second_b)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]]) {
  constexpr int columns = matmul_skinny_columns;
  constexpr int simdgroups = matmul_skinny_k_simdgroups;
  constexpr int vector = vector_elements<T>();
  threadgroup float2 shares[simdgroups][rows * columns];
  const ulong first_column = ulong(group.x) * columns;
  const uint thread_index = simd_index * 32 + lane;
  const ulong k_begin = group.y * p.k_per_split;
  const ulong k_end = min(p.k, k_begin + p.k_per_split);
  a += batch_offset(group.z, p.a_batch_strides, p);
  const long b_offset = batch_offset(group.z, p.b_batch_strides, p);

  float sums[products][rows][columns] = {};
  // Chunks of consecutive elements where b has them, single elements otherwise and at the end.
  const ulong chunks_end = b_vectors ? k_begin + (k_end - k_begin) / vector * vector : k_begin;
  for (ulong k = k_begin + thread_index * vector; k < chunks_end; k += simdgroups * 32 * vector) {
    chunk<T> left[rows];
#pragma clang loop unroll(full)
    for (int r = 0; r < rows; ++r) {
      const device T* from = a + long(min(ulong(r), p.m - 1)) * p.a_stride_m + long(k) * p.a_stride_k;
      if (a_vectors && !a_along_m) {
        left[r].raw = *(const device uint4*)from;
      } else {
        left[r] = gather_chunk(from, p.a_stride_k);
      }
    }
#pragma clang loop unroll(full)
    for (int product = 0; product < products; ++product) {
      const long stride_n = product == 0 ? p.b_stride_n : p.second_b_stride_n;
      const device T* source = (product == 0 ? b : second_b) + b_offset + k;
#pragma clang loop unroll(full)
      for (int c = 0; c < columns; ++c) {
        chunk<T> right;
        right.raw = *(const device uint4*)(source + long(min(first_column + c, p.n - 1)) * stride_n);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; ++r) {
#pragma clang loop unroll(full)
          for (int i = 0; i < vector / 4; ++i) {
            const float4 x = left[r].four(i), y = right.four(i);
            float sum = sums[product][r][c];
            sum = fma(x[0], y[0], sum);
            sum = fma(x[1], y[1], sum);
            sum = fma(x[2], y[2], sum);
            sums[product][r][c] = fma(x[3], y[3], sum);
          }
        }
      }
    }
  }
  for (ulong k = chunks_end + thread_index; k < k_end; k += simdgroups * 32) {
#pragma clang loop unroll(full)
    for (int product = 0; product < products; ++product) {
      const long stride_k = product == 0 ? p.b_stride_k : p.second_b_stride_k;
      const long stride_n = product == 0 ? p.b_stride_n : p.second_b_stride_n;
      const device T* source = (product == 0 ? b : second_b) + b_offset + long(k) * stride_k;
#pragma clang loop unroll(full)
      for (int c = 0; c < columns; ++c) {
        const float right = float(source[long(min(first_column + c, p.n - 1)) * stride_n]);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; ++r) {
          const float left = float(a[long(min(ulong(r), p.m - 1)) * p.a_stride_m + long(k) * p.a_stride_k]);
          sums[product][r][c] = fma(left, right, sums[product][r][c]);
        }
      }
    }
  }

  float2 mine = 0.0f;  // lane r * columns + c has the sum of row r and column c
#pragma clang loop unroll(full)
  for (int i = 0; i < rows * columns; ++i) {
    const int r = i / columns, c = i % columns;
    const float first = simd_sum(sums[0][r][c]);
    const float second = products == 1 ? 0.0f : simd_sum(sums[products - 1][r][c]);
    if (int(lane) == i) {
      mine = float2(first, second);
    }
  }
  if (lane < rows * columns) {
    shares[simd_index][lane] = mine;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes shares
  const ulong m = thread_index / columns;
  const ulong n = first_column + thread_index % columns;
  if (thread_index < rows * columns && m < p.m && n < p.n) {
    float2 sum = shares[0][thread_index];
#pragma clang loop unroll(full)
    for (int s = 1; s < simdgroups; ++s) {
      sum += shares[s][thread_index];
    }
    result_at(out, partials, bias, residual, preactivation, up, group.z, is_partial, group.y, p).store(sum, m, n);
  }
}

// matmul_skinny_n: for b whose shorter stride is that of n. Eight lanes read 128 bytes of a row of b, a simdgroup four
// rows at a time, a threadgroup 32; each lane keeps sums for the columns that it reads, which are added up across lanes
// and simdgroups at the end.
//
// Grid: x: columns, by 128 bytes; y: splits of k; z: batch. Threadgroup: (32, matmul_skinny_n_simdgroups).
// Threadgroup bytes: 1024 * rows in fp32, 2048 * rows in f16 and bf16.
// Chosen for at most `rows` rows.
// Necessary: as above. What the kernel adds: one barrier; a is read ceil(n / columns of 128 bytes) times, from cache.
template <typename T, int rows>
[[kernel, max_total_threads_per_threadgroup(32 * matmul_skinny_n_simdgroups)]] void matmul_skinny_n(
    const device T* a [[buffer(matmul_buffer_a)]], const device T* b [[buffer(matmul_buffer_b)]],
    device T* out [[buffer(matmul_buffer_out)]], constant matmul_params& p [[buffer(matmul_buffer_params)]],
    device float* partials [[buffer(matmul_buffer_partials), function_constant(is_partial)]],
    const device T* bias [[buffer(matmul_buffer_bias), function_constant(has_bias)]],
    const device T* residual [[buffer(matmul_buffer_residual), function_constant(has_residual)]],
    device T* preactivation [[buffer(matmul_buffer_preactivation), function_constant(has_preactivation)]],
    device T* up [[buffer(matmul_buffer_up), function_constant(has_preactivation)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simd_index [[simdgroup_index_in_threadgroup]]) {
  constexpr int simdgroups = matmul_skinny_n_simdgroups;
  constexpr int vector = vector_elements<T>();
  constexpr int columns = 8 * vector;
  threadgroup float partial[simdgroups][rows][columns];
  const ulong k_begin = group.y * p.k_per_split;
  const ulong k_end = min(p.k, k_begin + p.k_per_split);
  const ulong first_column = ulong(group.x) * columns;
  a += batch_offset(group.z, p.a_batch_strides, p);
  b += batch_offset(group.z, p.b_batch_strides, p) + long(first_column) * p.b_stride_n;
  const int column_count = count_in_tile(p.n - first_column, columns);

  // Element i of a lane is column first + i * step: neighbours for vectors, eight apart for lanes that move as one.
  const int first = int(lane % 8) * (b_vectors ? vector : 1);
  const int step = b_vectors ? 1 : 8;
  const bool whole = b_vectors && first + vector <= column_count;
  float4 sums[rows][vector / 4] = {};
  for (ulong k = k_begin + simd_index * 4 + lane / 8; k < k_end; k += simdgroups * 4) {
    const device T* source = b + long(k) * p.b_stride_k;
    float4 right[vector / 4];
    if (whole) {
      chunk<T> loaded;
      loaded.raw = *(const device uint4*)(source + first);
#pragma clang loop unroll(full)
      for (int i = 0; i < vector / 4; ++i) {
        right[i] = loaded.four(i);
      }
    } else {
#pragma clang loop unroll(full)
      for (int i = 0; i < vector; ++i) {
        const int c = first + i * step;
        right[i / 4][i % 4] = 0.0f;
        if (c < column_count) {
          right[i / 4][i % 4] = float(source[c * p.b_stride_n]);
        }
      }
    }
#pragma clang loop unroll(full)
    for (int r = 0; r < rows; ++r) {
      const float4 left = float(a[long(min(ulong(r), p.m - 1)) * p.a_stride_m + long(k) * p.a_stride_k]);
#pragma clang loop unroll(full)
      for (int i = 0; i < vector / 4; ++i) {
        sums[r][i] = fma(left, right[i], sums[r][i]);
      }
    }
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < rows; ++r) {
#pragma clang loop unroll(full)
    for (int i = 0; i < vector; ++i) {
      float sum = sums[r][i / 4][i % 4];
      sum += simd_shuffle_xor(sum, ushort(8));
      sum += simd_shuffle_xor(sum, ushort(16));
      if (lane < 8) {
        partial[simd_index][r][first + i * step] = sum;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes partial
  for (int i = int(simd_index * 32 + lane); i < rows * columns; i += simdgroups * 32) {
    const int r = i / columns, c = i % columns;
    if (ulong(r) < p.m && c < column_count) {
      float sum = 0.0f;
#pragma clang loop unroll(full)
      for (int s = 0; s < simdgroups; ++s) {
        sum += partial[s][r][c];
      }
      result_at(out, partials, bias, residual, preactivation, up, group.z, is_partial, group.y, p)
          .store(float2(sum, 0.0f), ulong(r), first_column + c);
    }
  }
}

#define INSTANTIATE_K(dtype, T, rows, products)                                          \
  template [[host_name("matmul_skinny_k_" #dtype "_r" #rows "_p" #products)]] [[kernel]] \
  decltype(matmul_skinny_k<T, rows, products>) matmul_skinny_k<T, rows, products>;
MATMUL_SKINNY_K_VARIANTS(INSTANTIATE_K)

#define INSTANTIATE_N(dtype, T, rows)                                     \
  template [[host_name("matmul_skinny_n_" #dtype "_r" #rows)]] [[kernel]] \
  decltype(matmul_skinny_n<T, rows>) matmul_skinny_n<T, rows>;
MATMUL_SKINNY_N_VARIANTS(INSTANTIATE_N)
