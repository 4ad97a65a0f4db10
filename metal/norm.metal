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

// Four elements as they are read.
template <typename T>
struct norm_sources {
  vec<T, 4> x;
  vec<T, 4> residual;
  vec<T, 4> gate;
};

// A thread's part of a row, in both kernels.
template <typename T>
struct norm_row_forward {
  const device T* x;  // the row's first element, as of the others; undefined, and not touched, where there is none
  const device T* residual;
  const device T* gate;
  device T* out;
  device T* residual_out;
  norm_columns columns;

  norm_sources<T> fetch(uint chunk, constant norm_params& p) const {
    norm_sources<T> e;
    e.x = columns.fetch(x, p.x.column_stride, chunk);
    if (has_residual) {
      e.residual = columns.fetch(residual, p.residual.column_stride, chunk);
    }
    if (has_gate && gate_first) {
      e.gate = columns.fetch(gate, p.gate.column_stride, chunk);
    }
    return e;
  }

  static float4 input(norm_sources<T> e) {
    float4 values = float4(e.x);
    if (has_residual) {
      values += float4(e.residual);
    }
    if (has_gate && gate_first) {
      const float4 g = float4(e.gate);
      values *= g * sigmoid(g);
    }
    return values;
  }

  // The same, when it is met first.
  float4 take(uint chunk, norm_sources<T> e) const {
    const float4 values = input(e);
    if (has_residual) {
      columns.store(residual_out, chunk, values);
    }
    return values;
  }

  void store(uint chunk, float4 values, constant norm_params& p) const {
    if (has_gate && !gate_first) {
      const float4 g = columns.load(gate, p.gate.column_stride, chunk);
      values *= g * sigmoid(g);
    }
    columns.store(out, chunk, values);
  }
};

// The tensors of which it is a part.
template <typename T>
struct norm_tensors {
  const device T* x;
  const device T* residual;
  const device T* gate;
  device T* out;
  device T* residual_out;

  norm_row_forward<T> row(uint row, norm_columns columns, constant norm_params& p) const {
    return {x + row_offset(row, p.x),
            has_residual ? residual + row_offset(row, p.residual) : nullptr,
            has_gate ? gate + row_offset(row, p.gate) : nullptr,
            out + long(row) * p.columns,
            has_residual ? residual_out + long(row) * p.columns : nullptr,
            columns};
  }
};

// The parameters, where they are.
struct norm_parameters_at {
  const device char* weight;
  const device char* bias;
  const device char* scale;
  const device char* shift;
};

// What the parameters make of the normalized x in four columns.
struct norm_affine {
  float4 factor;
  float4 addend;

  float4 of(float4 x_hat) const {
    if (has_weight || has_modulation) {
      x_hat *= factor;
    }
    if (has_bias || has_modulation) {
      x_hat += addend;
    }
    return x_hat;
  }
};

template <typename T>
static norm_affine load_affine(norm_parameters_at at, norm_columns columns, uint sample, uint chunk,
                               constant norm_params& p) {
  norm_affine affine = {1.0f, 0.0f};
  if (has_weight) {
    affine.factor = columns.load<T>(at.weight, parameters_f32, 0, p.weight_stride, chunk) + p.weight_offset;
  }
  if (has_bias) {
    affine.addend = columns.load<T>(at.bias, parameters_f32, 0, p.bias_stride, chunk);
  }
  if (has_modulation) {
    const long scales = sample * p.scale_stride, shifts = sample * p.shift_stride;
    const float4 scale = 1.0f + columns.load<T>(at.scale, modulation_f32, scales, p.scale_column_stride, chunk);
    affine.factor *= scale;
    affine.addend =
        fma(affine.addend, scale, columns.load<T>(at.shift, modulation_f32, shifts, p.shift_column_stride, chunk));
  }
  return affine;
}

// The parameters of a thread's columns, in registers: as they are in memory, where they are in T and alone.
template <typename T, uint chunks>
struct norm_held {
  vec<T, 4> weight[chunks];
  vec<T, 4> bias[chunks];
  norm_affine affine[chunks];

  static bool narrow() { return !parameters_f32 && !has_modulation; }

  void load(uint chunk, norm_parameters_at at, norm_columns columns, uint sample, constant norm_params& p) {
    if (!narrow()) {
      affine[chunk] = load_affine<T>(at, columns, sample, chunk, p);
      return;
    }
    if (has_weight) {
      weight[chunk] = columns.fetch(reinterpret_cast<const device T*>(at.weight), p.weight_stride, chunk);
    }
    if (has_bias) {
      bias[chunk] = columns.fetch(reinterpret_cast<const device T*>(at.bias), p.bias_stride, chunk);
    }
  }

  norm_affine get(uint chunk, constant norm_params& p) const {
    if (!narrow()) {
      return affine[chunk];
    }
    norm_affine wide = {1.0f, 0.0f};
    if (has_weight) {
      wide.factor = float4(weight[chunk]) + p.weight_offset;
    }
    if (has_bias) {
      wide.addend = float4(bias[chunk]);
    }
    return wide;
  }
};

// What the threads of a row sum first: for the mean, x and |x|; for the mean square, squares at two scales.
template <typename T>
struct norm_first_sums {
  float4 a;
  float4 b;

  void add(float4 x, constant norm_params& p) {
    if (centered) {
      a.x = add_scaled(x, norm_unit, a.x);
      b.x = add_scaled(abs(x), norm_unit, b.x);
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

// norm_row: simdgroups_per_row simdgroups share a row, of which each thread keeps max_columns / max_threads columns in
// registers, and take the rows of a part one after the other.
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup parts each.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 512.
// Chosen for rows of at most max_columns columns.
// Necessary: x, residual, gate, the parameters, and a modulation of each sample, read once, out and residual_out
// written once; about 3 FLOP for each element and 1 or 2 for each line of the formula. What the kernel adds:
// - each part reads the parameters, from cache but for the first parts; without `held` each row does;
// - a row of more than one simdgroup has one barrier without a mean, two with it; shorter rows have none. With `ahead`
//   the next row is on its way meanwhile;
// - up to 31 threads of a row idle.
template <typename T, uint max_columns, uint max_threads>
[[kernel, max_total_threads_per_threadgroup(max_threads)]] void norm_row(
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
  constexpr uint chunks = max_columns / (4 * max_threads);
  threadgroup float2 partial[2][32];
  const ulong first_part = (ulong(group.y) * norm_grid_width + group.x) * p.rows_per_threadgroup;
  if (first_part >= ulong(p.samples) * p.parts_per_sample) {
    return;  // the whole threadgroup: the last y may be filled in part
  }
  const norm_part part = part_of(first_part, lane, simdgroup, p);
  const norm_tensors<T> tensors = {x, residual, gate, out, residual_out};
  const norm_parameters_at parameters = {weight, bias, scale, shift};
  norm_held<T, chunks> of_columns;
  norm_sources<T> next[chunks];
  if (held || ahead) {
    const norm_row_forward<T> slice = tensors.row(part.row(0), part.columns_of(0), p);
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      if (ahead) {
        next[chunk] = slice.fetch(chunk, p);
      }
      if (held) {
        of_columns.load(chunk, parameters, slice.columns, part.sample, p);
      }
    }
  }
  for (uint i = 0; i < p.rows_per_part; ++i) {
    const norm_row_forward<T> slice = tensors.row(part.row(i), part.columns_of(i), p);
    float4 values[chunks];
    norm_first_sums<T> first = {0.0f, 0.0f};
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      values[chunk] = slice.take(chunk, ahead ? next[chunk] : slice.fetch(chunk, p));
      first.add(values[chunk], p);
    }
    if (ahead) {
      const norm_row_forward<T> following = tensors.row(part.row(i + 1), part.columns_of(i + 1), p);
#pragma clang loop unroll(full)
      for (uint chunk = 0; chunk < chunks; ++chunk) {
        next[chunk] = following.fetch(chunk, p);
      }
    }
    const float2 sums = simdgroups_sum(first.sums(), part.first_simdgroup, p.simdgroups_per_row, lane, simdgroup,
                                       partial[centered ? 0 : i & 1]);
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
      s = norm_second(s,
                      simdgroups_sum(float2(total(a), total(b)), part.first_simdgroup, p.simdgroups_per_row, lane,
                                     simdgroup, partial[1]),
                      p);
    } else {
      s = norm_root<T>(sums, p);
    }
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const norm_affine affine =
          held ? of_columns.get(chunk, p) : load_affine<T>(parameters, slice.columns, part.sample, chunk, p);
      slice.store(chunk, affine.of(s.x_hat(values[chunk])), p);
    }
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
  const norm_tensors<T> tensors = {x, residual, gate, out, residual_out};
  const norm_row_forward<T> slice = tensors.row(row, {p.columns, threads, simdgroup * 32 + lane}, p);
  const norm_parameters_at parameters = {weight, bias, scale, shift};
  const uint sample = has_modulation ? row / p.rows_per_sample : 0;
  const uint chunks = (p.columns + 4 * threads - 1) / (4 * threads);
  norm_first_sums<T> first = {0.0f, 0.0f};
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    first.add(slice.take(chunk, slice.fetch(chunk, p)), p);
  }
  const float2 sums = simdgroups_sum(first.sums(), 0, p.simdgroups_per_row, lane, simdgroup, partial[0]);
  norm_statistics s;
  if (centered) {
    s = norm_first(sums, p);
    float4 a = 0.0f, b = 0.0f;
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const float4 deviation = slice.columns.inside(chunk, s.deviation(slice.input(slice.fetch(chunk, p))));
      a += deviation;
      b = fma(deviation, deviation, b);
    }
    s = norm_second(s, simdgroups_sum(float2(total(a), total(b)), 0, p.simdgroups_per_row, lane, simdgroup, partial[1]),
                    p);
  } else {
    s = norm_root<T>(sums, p);
  }
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    const norm_affine affine = load_affine<T>(parameters, slice.columns, sample, chunk, p);
    slice.store(chunk, affine.of(s.x_hat(slice.input(slice.fetch(chunk, p)))), p);
  }
}

#define INSTANTIATE_ROW(dtype, T, columns, threads)                   \
  template [[host_name("norm_row_" #dtype "_d" #columns)]] [[kernel]] \
  decltype(norm_row<T, columns, threads>) norm_row<T, columns, threads>;
NORM_ROW_VARIANTS(INSTANTIATE_ROW)

#define INSTANTIATE_LOOP(dtype, T) \
  template [[host_name("norm_loop_" #dtype)]] [[kernel]] decltype(norm_loop<T>) norm_loop<T>;
NORM_LOOP_VARIANTS(INSTANTIATE_LOOP)
