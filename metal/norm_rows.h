// What the norm kernels share: where a row is, which columns are a thread's, and the statistics of a row.
#pragma once

#include <metal_stdlib>

#include "norm_params.h"

namespace mpsk {

constant bool centered [[function_constant(norm_constant_centered)]];
constant bool has_residual [[function_constant(norm_constant_residual)]];
constant bool has_gate [[function_constant(norm_constant_gate)]];
constant bool gate_first [[function_constant(norm_constant_gate_first)]];
constant bool has_weight [[function_constant(norm_constant_weight)]];
constant bool has_bias [[function_constant(norm_constant_bias)]];
constant bool parameters_f32 [[function_constant(norm_constant_parameters_f32)]];
constant bool has_modulation [[function_constant(norm_constant_modulation)]];
constant bool modulation_f32 [[function_constant(norm_constant_modulation_f32)]];
constant bool vectors [[function_constant(norm_constant_vectors)]];
constant bool held [[function_constant(norm_constant_held)]];
constant bool ahead [[function_constant(norm_constant_ahead)]];

// Offset of a row, in elements. Contiguous rows have one leading dimension and need no division.
inline long row_offset(uint row, constant norm_rows& rows) {
  long offset = 0;
  for (uint d = 0; d + 1 < rows.dims; ++d) {
    offset += long(row % rows.sizes[d]) * rows.strides[d];
    row /= rows.sizes[d];
  }
  return offset + long(row) * rows.strides[rows.dims - 1];
}

inline float total(float4 v) { return (v.x + v.y) + (v.z + v.w); }

// sum + the elements of v, times a factor that keeps them in range. By fma alone: fast math may take a factor out of
// sums of products, and then their sum leaves it.
inline float add_scaled(float4 v, float factor, float sum) {
  return metal::fma(v.x, factor, metal::fma(v.y, factor, metal::fma(v.z, factor, metal::fma(v.w, factor, sum))));
}

// 1 / (1 + exp(-x)), and never the exponential of a large number.
inline float4 sigmoid(float4 x) {
  const float4 e = metal::exp(-metal::abs(x));
  return metal::select(e, float4(1.0f), x >= 0.0f) / (1.0f + e);
}

// The columns that a thread has of its row, in chunks of four. With `vectors` the four are adjacent and move as one;
// without, they lie `threads` apart, so that neighbouring threads touch neighbouring columns.
struct norm_columns {
  uint count;  // of the row; 0 where there is no row, of which nothing is read or written
  uint threads;
  uint thread_index;

  uint column(uint chunk, uint i) const {
    return vectors ? (chunk * threads + thread_index) * 4 + i : (chunk * 4 + i) * threads + thread_index;
  }

  // Zeros in the place of values past the end.
  float4 inside(uint chunk, float4 values) const {
    if (vectors) {
      return column(chunk, 0) < count ? values : 0.0f;
    }
    for (uint i = 0; i < 4; ++i) {
      values[i] = column(chunk, i) < count ? values[i] : 0.0f;
    }
    return values;
  }

  // As they are in memory. Zeros for columns past the end.
  template <typename T>
  metal::vec<T, 4> fetch(const device T* row, long stride, uint chunk) const {
    metal::vec<T, 4> values = T(0.0f);
    if (vectors) {
      const uint c = column(chunk, 0);
      if (c < count) {
        values = *reinterpret_cast<const device metal::vec<T, 4>*>(row + c);
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        const uint c = column(chunk, i);
        if (c < count) {
          values[i] = row[c * stride];
        }
      }
    }
    return values;
  }
  template <typename T>
  float4 load(const device T* row, long stride, uint chunk) const {
    return float4(fetch(row, stride, chunk));
  }

  // Of a tensor in T or in float32.
  template <typename T>
  float4 load(const device char* data, bool f32, long first, long stride, uint chunk) const {
    return f32 ? load(reinterpret_cast<const device float*>(data) + first, stride, chunk)
               : load(reinterpret_cast<const device T*>(data) + first, stride, chunk);
  }

  // Rounds, to a contiguous row.
  template <typename T>
  void store(device T* row, uint chunk, float4 values) const {
    if (vectors) {
      const uint c = column(chunk, 0);
      if (c < count) {
        *reinterpret_cast<device metal::vec<T, 4>*>(row + c) = metal::vec<T, 4>(values);
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        const uint c = column(chunk, i);
        if (c < count) {
          row[c] = T(values[i]);
        }
      }
    }
  }
};

// What some simdgroups of a threadgroup have to do: rows of one sample, one after the other.
struct norm_part {
  uint sample;
  uint first_row;  // of all
  uint rows;       // none where the sample has no more, or there is no such part: barriers must be reached all the same
  uint first_simdgroup;
  norm_columns columns;

  // The columns of its row i, and none past the last.
  norm_columns columns_of(uint i) const {
    return {i < rows ? columns.count : 0, columns.threads, columns.thread_index};
  }
  uint row(uint i) const { return i < rows ? first_row + i : 0; }
};

// The part of a simdgroup of a threadgroup whose first part exists.
inline norm_part part_of(ulong first_part, uint lane, uint simdgroup, constant norm_params& p) {
  const uint in_group = simdgroup / p.simdgroups_per_row;
  const ulong index = first_part + in_group;
  const bool exists = index < ulong(p.samples) * p.parts_per_sample;
  norm_part part;
  part.sample = exists ? uint(index / p.parts_per_sample) : 0;
  const ulong in_sample = exists ? (index % p.parts_per_sample) * p.rows_per_part : p.rows_per_sample;
  part.rows =
      in_sample < p.rows_per_sample ? uint(metal::min(ulong(p.rows_per_part), p.rows_per_sample - in_sample)) : 0;
  part.first_row = part.rows > 0 ? part.sample * p.rows_per_sample + uint(in_sample) : 0;
  part.first_simdgroup = in_group * p.simdgroups_per_row;
  part.columns = {p.columns, p.simdgroups_per_row * 32, (simdgroup - part.first_simdgroup) * 32 + lane};
  return part;
}

// Whether squares of a T pass the range of float32.
template <typename T>
constexpr bool is_wide() {
  return true;
}
template <>
constexpr bool is_wide<half>() {
  return false;
}

// x_hat = (x * scale - mean - correction) * rstd. The products that must not be taken apart are arguments of fma:
// fast math may turn x * s + y * s into (x + y) * s, which overflows. For the same reason there is one factor for a
// mean.
struct norm_statistics {
  float scale;
  float eps;
  float mean;
  float correction;
  float rstd;

  float4 deviation(float4 x) const { return centered ? metal::fma(x, scale, -mean) : x * scale; }
  float4 x_hat(float4 x) const { return (centered ? deviation(x) - correction : deviation(x)) * rstd; }
};

// The mean as far as one sum in float32 gives it, and the scale of the row; from the sums of x and of |x|, each times
// 2^-32, which no sum of 2^31 floats passes.
constant constexpr float norm_unit = 2.3283064365386963e-10f;

template <typename Params>
inline norm_statistics norm_first(float2 sums, constant Params& p) {
  const bool large = !(sums.y < p.large);
  norm_statistics s;
  s.scale = large ? p.scale_large : p.scale;
  s.eps = large ? p.eps_large : p.eps;
  s.mean = centered ? sums.x * (large ? p.mean_scale_large : p.mean_scale) : 0.0f;
  s.correction = 0.0f;
  s.rstd = 0.0f;
  return s;
}

// What the first mean lacked, and the deviation; from the sums of the deviations from it and of their squares. The
// deviations are small where the row is nearly constant, so nothing cancels.
template <typename Params>
inline norm_statistics norm_second(norm_statistics s, float2 sums, constant Params& p) {
  const float2 means = sums / float(p.columns);
  float variance = means.y;
  if (centered) {
    s.correction = means.x;
    variance = metal::max(variance - s.correction * s.correction, 0.0f);
  }
  s.rstd = metal::precise::rsqrt(variance + s.eps);
  return s;
}

// The statistics of a row without a mean, from its sums of squares at `scale` and at `scale_large`.
template <typename T>
inline norm_statistics norm_root(float2 sums, constant norm_params& p) {
  const bool large = is_wide<T>() && !(sums.x < 1.329228e36f);  // 2^120
  norm_statistics s;
  s.scale = large ? p.scale_large : p.scale;
  s.eps = large ? p.eps_large : p.eps;
  s.mean = 0.0f;
  s.correction = 0.0f;
  s.rstd = metal::precise::rsqrt((large ? sums.y : sums.x) / float(p.columns) + s.eps);
  return s;
}

}  // namespace mpsk
