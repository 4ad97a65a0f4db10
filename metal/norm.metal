// out[row, i] = x[row, i] / sqrt(mean over i of x[row, i]^2 + eps) * weight[i], in fp32, rounded once.
// Root mean square layer normalization: Zhang and Sennrich, 2019.

#include <metal_stdlib>

#include "common/reductions.h"
#include "norm_params.h"
#include "norm_variants.h"

using namespace metal;
using namespace mpsk;

constant bool has_weight [[function_constant(norm_constant_weight)]];
constant bool has_weight_f32 [[function_constant(norm_constant_weight_f32)]];
constant bool vectors [[function_constant(norm_constant_vectors)]];

// Offset of a row of x, in elements. A contiguous x has one leading dimension and needs no division.
static long row_offset(uint row, constant rms_norm_params& p) {
  long offset = 0;
  for (uint d = 0; d + 1 < p.dims; ++d) {
    offset += long(row % p.sizes[d]) * p.strides[d];
    row /= p.sizes[d];
  }
  return offset + long(row) * p.strides[p.dims - 1];
}

// What one thread sees of its row: chunks of four columns. With `vectors` the four are adjacent and move as one;
// without, they lie `threads` apart, so that neighbouring threads touch neighbouring columns.
template <typename T>
struct rms_norm_slice {
  const device T* x;
  const device T* weight;          // undefined, and not touched, unless has_weight
  const device float* weight_f32;  // the same for has_weight_f32
  device T* out;
  long column_stride;
  long weight_stride;
  uint columns;
  uint threads;  // of the row
  uint thread_index;

  uint column(uint chunk, uint i) const {
    return vectors ? (chunk * threads + thread_index) * 4 + i : (chunk * 4 + i) * threads + thread_index;
  }

  // Zeros for columns past the end.
  float4 load(uint chunk) const {
    float4 values = 0.0f;
    if (vectors) {
      const uint c = column(chunk, 0);
      if (c < columns) {
        values = float4(*reinterpret_cast<const device vec<T, 4>*>(x + c));
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        const uint c = column(chunk, i);
        if (c < columns) {
          values[i] = float(x[c * column_stride]);
        }
      }
    }
    return values;
  }

  // Multiplies by the weight and rounds.
  void store(uint chunk, float4 values) const {
    if (vectors) {
      const uint c = column(chunk, 0);
      if (c < columns) {
        if (has_weight) {
          values *= float4(*reinterpret_cast<const device vec<T, 4>*>(weight + c));
        }
        if (has_weight_f32) {
          values *= *reinterpret_cast<const device float4*>(weight_f32 + c);
        }
        *reinterpret_cast<device vec<T, 4>*>(out + c) = vec<T, 4>(values);
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        const uint c = column(chunk, i);
        if (c < columns) {
          float value = values[i];
          if (has_weight) {
            value *= float(weight[c * weight_stride]);
          }
          if (has_weight_f32) {
            value *= weight_f32[c * weight_stride];
          }
          out[c] = T(value);
        }
      }
    }
  }
};

// rms_norm_row: simdgroups_per_row simdgroups share a row, of which each thread keeps max_columns / 1024 columns in
// registers.
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup rows each.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 128.
// Chosen for rows of at most max_columns columns.
// Necessary: x read once, out written once; 3 FLOP for each element, 4 with a weight. What the kernel adds:
// - each row reads the weight, from cache but for the first rows;
// - one barrier and one more simd_sum for each row of more than one simdgroup; none for shorter rows;
// - up to 31 threads of a row idle.
template <typename T, uint max_columns>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void rms_norm_row(
    const device T* x [[buffer(norm_buffer_x)]],
    const device T* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device float* weight_f32 [[buffer(norm_buffer_weight_f32), function_constant(has_weight_f32)]],
    device T* out [[buffer(norm_buffer_out)]], constant rms_norm_params& p [[buffer(norm_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint chunks = max_columns / (4 * norm_row_threads);
  threadgroup float partial[32];
  const ulong first_row = (ulong(group.y) * norm_grid_width + group.x) * p.rows_per_threadgroup;
  if (first_row >= p.rows) {
    return;  // the whole threadgroup: the last y may be filled in part
  }
  const uint row_in_group = simdgroup / p.simdgroups_per_row;
  const uint first_simdgroup = row_in_group * p.simdgroups_per_row;
  const ulong row = first_row + row_in_group;
  const bool exists = row < p.rows;  // false for the last rows of the last threadgroup, which must reach the barrier
  const rms_norm_slice<T> slice = {
      x + (exists ? row_offset(uint(row), p) : 0),
      weight,
      weight_f32,
      out + (exists ? row * p.columns : 0),
      p.column_stride,
      p.weight_stride,
      exists ? p.columns : 0,
      p.simdgroups_per_row * 32,
      (simdgroup - first_simdgroup) * 32 + lane,
  };
  float4 values[chunks];
  float sum = 0.0f;
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    values[chunk] = slice.load(chunk);
    sum += dot(values[chunk], values[chunk]);
  }
  sum = simdgroups_sum(sum, first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial);
  const float scale = precise::rsqrt(sum / float(p.columns) + p.eps);
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    slice.store(chunk, values[chunk] * scale);
  }
}

// rms_norm_loop: a threadgroup walks over its row twice.
//
// Grid: x and y together number the rows. Threadgroup: (32 * simdgroups_per_row). Threadgroup bytes: 128.
// Chosen for rows that fit no row kernel.
// Necessary: as above. What the kernel adds: as above, and x is read twice; the second time from cache as far as the
// rows under way fit there.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void rms_norm_loop(
    const device T* x [[buffer(norm_buffer_x)]],
    const device T* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device float* weight_f32 [[buffer(norm_buffer_weight_f32), function_constant(has_weight_f32)]],
    device T* out [[buffer(norm_buffer_out)]], constant rms_norm_params& p [[buffer(norm_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[32];
  const ulong row = ulong(group.y) * norm_grid_width + group.x;
  if (row >= p.rows) {
    return;
  }
  const uint threads = p.simdgroups_per_row * 32;
  const rms_norm_slice<T> slice = {
      x + row_offset(uint(row), p),
      weight,
      weight_f32,
      out + row * p.columns,
      p.column_stride,
      p.weight_stride,
      p.columns,
      threads,
      simdgroup * 32 + lane,
  };
  const uint chunks = (p.columns + 4 * threads - 1) / (4 * threads);
  float sum = 0.0f;
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    const float4 values = slice.load(chunk);
    sum += dot(values, values);
  }
  sum = simdgroups_sum(sum, 0, p.simdgroups_per_row, lane, simdgroup, partial);
  const float scale = precise::rsqrt(sum / float(p.columns) + p.eps);
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    slice.store(chunk, slice.load(chunk) * scale);
  }
}

#define INSTANTIATE_ROW(dtype, T, columns)                                \
  template [[host_name("rms_norm_row_" #dtype "_d" #columns)]] [[kernel]] \
  decltype(rms_norm_row<T, columns>) rms_norm_row<T, columns>;
RMS_NORM_ROW_VARIANTS(INSTANTIATE_ROW)

#define INSTANTIATE_LOOP(dtype, T) \
  template [[host_name("rms_norm_loop_" #dtype)]] [[kernel]] decltype(rms_norm_loop<T>) rms_norm_loop<T>;
RMS_NORM_LOOP_VARIANTS(INSTANTIATE_LOOP)
