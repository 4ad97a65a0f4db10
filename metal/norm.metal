// The normalizations of rows and what is fused with them, forward:
//
//   x += residual, which is also written (the norm takes the sum before it is rounded)
//   x *= silu(gate), if gate_first
//   y = (x - mean) / sqrt(variance + eps), or x / sqrt(mean of x^2 + eps)
//   y = y * (weight + weight_offset) + bias
//   y = y * (1 + scale[sample]) + shift[sample]
//   y *= silu(gate), if not gate_first
//
// in float32, each output rounded once. Which lines there are is a matter of function constants.
// Layer normalization: Ba, Kiros and Hinton, 2016. Root mean square layer normalization: Zhang and Sennrich, 2019.
// Adaptive layer norm: Perez et al., FiLM, 2018; Peebles and Xie, Scalable diffusion models with transformers, 2023.
// The sum of squares at two scales: Blue, A portable Fortran program to find the Euclidean norm of a vector, 1978.

#include <metal_stdlib>

#include "common/reductions.h"
#include "norm_rows.h"
#include "norm_variants.h"

using namespace metal;
using namespace mpsk;

// A thread's part of its row, in both kernels.
template <typename T>
struct norm_row_forward {
  const device T* x;  // the row's first element, as of the others; undefined, and not touched, where there is none
  const device T* residual;
  const device T* gate;
  const device char* weight;
  const device char* bias;
  const device char* scale;
  const device char* shift;
  device T* out;
  device T* residual_out;
  long sample;
  norm_columns columns;

  float4 load(uint chunk, constant norm_params& p) const {
    float4 values = columns.load(x, p.x.column_stride, chunk);
    if (has_residual) {
      values += columns.load(residual, p.residual.column_stride, chunk);
    }
    if (has_gate && gate_first) {
      const float4 g = columns.load(gate, p.gate.column_stride, chunk);
      values *= g * sigmoid(g);
    }
    return values;
  }

  // The same, when it is met first.
  float4 take(uint chunk, constant norm_params& p) const {
    const float4 values = load(chunk, p);
    if (has_residual) {
      columns.store(residual_out, chunk, values);
    }
    return values;
  }

  void store(uint chunk, float4 values, constant norm_params& p) const {
    if (has_weight) {
      values *= columns.template load<T>(weight, parameters_f32, 0, p.weight_stride, chunk) + p.weight_offset;
    }
    if (has_bias) {
      values += columns.template load<T>(bias, parameters_f32, 0, p.bias_stride, chunk);
    }
    if (has_modulation) {
      const long scales = sample * p.scale_stride, shifts = sample * p.shift_stride;
      values *= 1.0f + columns.template load<T>(scale, modulation_f32, scales, p.scale_column_stride, chunk);
      values += columns.template load<T>(shift, modulation_f32, shifts, p.shift_column_stride, chunk);
    }
    if (has_gate && !gate_first) {
      const float4 g = columns.load(gate, p.gate.column_stride, chunk);
      values *= g * sigmoid(g);
    }
    columns.store(out, chunk, values);
  }
};

// What the threads of a row sum first: for the mean, x and |x|; for the mean square, squares at two scales.
template <typename T>
struct norm_first_sums {
  float4 a;
  float4 b;

  void add(float4 x, constant norm_params& p) {
    if (centered) {
      a = fma(x, float4(norm_unit), a);
      b = fma(abs(x), float4(norm_unit), b);
    } else {
      const float4 usual = x * p.scale;
      a = fma(usual, usual, a);
      if (is_wide<T>()) {
        const float4 small = x * p.scale_large;
        b = fma(small, small, b);
      }
    }
  }
  float2 sums() const { return float2(total(a), total(b)); }
};

// norm_row: simdgroups_per_row simdgroups share a row, of which each thread keeps max_columns / 1024 columns in
// registers.
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup rows each.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 512.
// Chosen for rows of at most max_columns columns.
// Necessary: x, residual, gate, and a modulation of each row, read once, out and residual_out written once; about
// 3 FLOP for each element and 1 or 2 for each line of the formula. What the kernel adds:
// - each row reads the parameters, from cache but for the first rows;
// - a row of more than one simdgroup has one barrier without a mean, two with it; shorter rows have none;
// - up to 31 threads of a row idle.
template <typename T, uint max_columns>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void norm_row(
    const device T* x [[buffer(norm_buffer_x)]],
    const device T* residual [[buffer(norm_buffer_residual), function_constant(has_residual)]],
    const device T* gate [[buffer(norm_buffer_gate), function_constant(has_gate)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* bias [[buffer(norm_buffer_bias), function_constant(has_bias)]],
    const device char* scale [[buffer(norm_buffer_scale), function_constant(has_modulation)]],
    const device char* shift [[buffer(norm_buffer_shift), function_constant(has_modulation)]],
    device T* out [[buffer(norm_buffer_out)]],
    device T* residual_out [[buffer(norm_buffer_residual_out), function_constant(has_residual)]],
    constant norm_params& p [[buffer(norm_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint chunks = max_columns / (4 * norm_row_threads);
  threadgroup float2 partial[2][32];
  const ulong first_row = (ulong(group.y) * norm_grid_width + group.x) * p.rows_per_threadgroup;
  if (first_row >= p.rows) {
    return;  // the whole threadgroup: the last y may be filled in part
  }
  const uint row_in_group = simdgroup / p.simdgroups_per_row;
  const uint first_simdgroup = row_in_group * p.simdgroups_per_row;
  // The last rows of the last threadgroup may not exist, and must reach the barriers.
  const bool exists = first_row + row_in_group < p.rows;
  const uint row = exists ? uint(first_row + row_in_group) : 0;
  const norm_row_forward<T> slice = {
      x + row_offset(row, p.x),
      has_residual ? residual + row_offset(row, p.residual) : nullptr,
      has_gate ? gate + row_offset(row, p.gate) : nullptr,
      weight,
      bias,
      scale,
      shift,
      out + long(row) * p.columns,
      has_residual ? residual_out + long(row) * p.columns : nullptr,
      has_modulation ? row / p.rows_per_sample : 0,
      {exists ? p.columns : 0, p.simdgroups_per_row * 32, (simdgroup - first_simdgroup) * 32 + lane},
  };
  float4 values[chunks];
  norm_first_sums<T> first = {0.0f, 0.0f};
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    values[chunk] = slice.take(chunk, p);
    first.add(values[chunk], p);
  }
  const float2 sums = simdgroups_sum(first.sums(), first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial[0]);
  norm_statistics s;
  if (centered) {
    s = norm_first(sums, p);
    float4 a = 0.0f, b = 0.0f;
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const float4 deviation = slice.columns.inside(chunk, s.deviation(values[chunk]));
      a += deviation;
      b = fma(deviation, deviation, b);
    }
    s = norm_second(
        s,
        simdgroups_sum(float2(total(a), total(b)), first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial[1]),
        p);
  } else {
    s = norm_root<T>(sums, p);
  }
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    slice.store(chunk, s.x_hat(values[chunk]), p);
  }
}

// norm_loop: a threadgroup walks over its row twice, with a mean three times.
//
// Grid: x and y together number the rows. Threadgroup: (32 * simdgroups_per_row). Threadgroup bytes: 512.
// Chosen for rows that fit no row kernel.
// Necessary: as above. What the kernel adds: as above, and what makes x (residual, and a gate that comes first) is read
// again in each walk; from cache as far as the rows under way fit there.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void norm_loop(
    const device T* x [[buffer(norm_buffer_x)]],
    const device T* residual [[buffer(norm_buffer_residual), function_constant(has_residual)]],
    const device T* gate [[buffer(norm_buffer_gate), function_constant(has_gate)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* bias [[buffer(norm_buffer_bias), function_constant(has_bias)]],
    const device char* scale [[buffer(norm_buffer_scale), function_constant(has_modulation)]],
    const device char* shift [[buffer(norm_buffer_shift), function_constant(has_modulation)]],
    device T* out [[buffer(norm_buffer_out)]],
    device T* residual_out [[buffer(norm_buffer_residual_out), function_constant(has_residual)]],
    constant norm_params& p [[buffer(norm_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 partial[2][32];
  const ulong row_index = ulong(group.y) * norm_grid_width + group.x;
  if (row_index >= p.rows) {
    return;
  }
  const uint row = uint(row_index);
  const uint threads = p.simdgroups_per_row * 32;
  const norm_row_forward<T> slice = {
      x + row_offset(row, p.x),
      has_residual ? residual + row_offset(row, p.residual) : nullptr,
      has_gate ? gate + row_offset(row, p.gate) : nullptr,
      weight,
      bias,
      scale,
      shift,
      out + long(row) * p.columns,
      has_residual ? residual_out + long(row) * p.columns : nullptr,
      has_modulation ? row / p.rows_per_sample : 0,
      {p.columns, threads, simdgroup * 32 + lane},
  };
  const uint chunks = (p.columns + 4 * threads - 1) / (4 * threads);
  norm_first_sums<T> first = {0.0f, 0.0f};
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    first.add(slice.take(chunk, p), p);
  }
  const float2 sums = simdgroups_sum(first.sums(), 0, p.simdgroups_per_row, lane, simdgroup, partial[0]);
  norm_statistics s;
  if (centered) {
    s = norm_first(sums, p);
    float4 a = 0.0f, b = 0.0f;
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const float4 deviation = slice.columns.inside(chunk, s.deviation(slice.load(chunk, p)));
      a += deviation;
      b = fma(deviation, deviation, b);
    }
    s = norm_second(s, simdgroups_sum(float2(total(a), total(b)), 0, p.simdgroups_per_row, lane, simdgroup, partial[1]),
                    p);
  } else {
    s = norm_root<T>(sums, p);
  }
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    slice.store(chunk, s.x_hat(slice.load(chunk, p)), p);
  }
}

#define INSTANTIATE_ROW(dtype, T, columns) \
  template                                 \
      [[host_name("norm_row_" #dtype "_d" #columns)]] [[kernel]] decltype(norm_row<T, columns>) norm_row<T, columns>;
NORM_ROW_VARIANTS(INSTANTIATE_ROW)

#define INSTANTIATE_LOOP(dtype, T) \
  template [[host_name("norm_loop_" #dtype)]] [[kernel]] decltype(norm_loop<T>) norm_loop<T>;
NORM_LOOP_VARIANTS(INSTANTIATE_LOOP)
