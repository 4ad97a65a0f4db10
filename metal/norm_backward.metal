// The gradients of the norms of norm.metal. With g the gradient of the normalized x times what follows it, and
// x_hat the normalized x, over a row:
//
//   grad of x = (g - mean(g) - x_hat * mean(g * x_hat)) * rstd + grad of the residual's sum; no mean(g) without a mean
//   grad of weight = sum over rows of grad * x_hat, grad of bias = sum over rows of grad
//
// The statistics are computed again: the row is read in any case, so that saving them would only add bytes.

#include <metal_stdlib>

#include "common/reductions.h"
#include "norm_rows.h"
#include "norm_variants.h"

using namespace metal;
using namespace mpsk;

constant bool has_grad_x [[function_constant(norm_constant_grad_x)]];
constant bool has_grad_parameters [[function_constant(norm_constant_grad_parameters)]];
constant bool two_sums [[function_constant(norm_constant_two_sums)]];
constant bool has_grad_gate [[function_constant(norm_constant_grad_gate)]];
constant bool kept [[function_constant(norm_constant_kept)]];

// Four elements as they are in memory.
template <typename T>
struct norm_elements {
  vec<T, 4> x;
  vec<T, 4> grad;
  vec<T, 4> gate;

  float4 input() const {  // of the norm
    const float4 values = float4(x);
    if (has_gate && gate_first) {
      const float4 g = float4(gate);
      return values * g * sigmoid(g);
    }
    return values;
  }
  float4 output_grad() const {
    const float4 values = float4(grad);
    if (has_gate && !gate_first) {
      const float4 g = float4(gate);
      return values * g * sigmoid(g);
    }
    return values;
  }
};

// What is known of a row when its gradient is written.
struct norm_row_summary {
  norm_statistics statistics;
  float mean_g;
  float mean_g_x_hat;
};

// The second sums of a row: deviations, their squares, g, and g times deviations.
struct norm_second_sums {
  float4 deviation;
  float4 square;
  float4 g;
  float4 product;

  void add(float4 d, float4 gradient) {
    deviation += d;
    square = fma(d, d, square);
    g += gradient;
    product = fma(gradient, d, product);
  }
  float4 sums() const { return float4(total(deviation), total(square), total(g), total(product)); }
};

static norm_row_summary norm_summary(norm_statistics s, float4 sums, constant norm_params& p) {
  norm_row_summary summary;
  summary.statistics = norm_second(s, sums.xy, p);
  s = summary.statistics;
  summary.mean_g = centered ? sums.z / float(p.columns) : 0.0f;
  summary.mean_g_x_hat = (centered ? sums.w - s.correction * sums.z : sums.w) * s.rstd / float(p.columns);
  return summary;
}

// The statistics of a row whose first sums are not needed: its squares stay within the range of float32 at any scale.
static norm_statistics norm_usual(constant norm_params& p) {
  norm_statistics s;
  s.scale = p.scale;
  s.eps = p.eps;
  s.mean = 0.0f;
  s.correction = 0.0f;
  s.rstd = 0.0f;
  return s;
}

// A thread's part of a row, in both kernels.
template <typename T>
struct norm_row_backward {
  const device T* x;
  const device T* gate;
  const device T* grad;
  const device T* grad_residual;
  device T* grad_x;
  device T* grad_gate;
  norm_columns columns;

  norm_elements<T> load(uint chunk, constant norm_params& p) const {
    norm_elements<T> e = load_input(chunk, p);
    e.grad = columns.fetch(grad, p.grad.column_stride, chunk);
    if (has_gate && !gate_first) {
      e.gate = columns.fetch(gate, p.gate.column_stride, chunk);
    }
    return e;
  }
  // Without the gradient.
  norm_elements<T> load_input(uint chunk, constant norm_params& p) const {
    norm_elements<T> e;
    e.x = columns.fetch(x, p.x.column_stride, chunk);
    if (has_gate && gate_first) {
      e.gate = columns.fetch(gate, p.gate.column_stride, chunk);
    }
    return e;
  }

  template <uint chunks>
  void load(thread norm_elements<T> (&elements)[chunks], constant norm_params& p) const {
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      elements[chunk] = load(chunk, p);
    }
  }

  // `factor` is what multiplies the normalized x; a and b take the row's part of the parameters' gradients.
  void finish(uint chunk, norm_elements<T> e, norm_row_summary row, float4 factor, thread float4& a, thread float4& b,
              constant norm_params& p) const {
    const norm_statistics s = row.statistics;
    const float4 x_hat = s.x_hat(e.input());
    const float4 output_grad = e.output_grad();
    if (has_grad_parameters) {
      a = fma(output_grad, x_hat, a);
      if (two_sums) {
        b += output_grad;
      }
    }
    if (has_grad_x) {
      float4 g = output_grad * factor;
      if (centered) {
        g -= row.mean_g;
      }
      float4 result = (g - x_hat * row.mean_g_x_hat) * s.rstd * s.scale;
      if (has_residual) {
        result += columns.load(grad_residual, p.residual.column_stride, chunk);
      }
      if (has_grad_gate) {
        const float4 gate_values = float4(e.gate);
        const float4 sig = sigmoid(gate_values);
        const float4 slope = sig * (1.0f + gate_values * (1.0f - sig));  // of silu
        columns.store(grad_gate, chunk, (gate_first ? result * float4(e.x) : float4(e.grad) * x_hat * factor) * slope);
        if (gate_first) {
          result *= gate_values * sig;
        }
      }
      columns.store(grad_x, chunk, result);
    }
  }
};

// The tensors of which it is a part.
template <typename T>
struct norm_backward_tensors {
  const device T* x;
  const device T* gate;
  const device T* grad;
  const device T* grad_residual;
  device T* grad_x;
  device T* grad_gate;

  norm_row_backward<T> row(uint row, norm_columns columns, constant norm_params& p) const {
    return {x + row_offset(row, p.x),
            has_gate ? gate + row_offset(row, p.gate) : nullptr,
            grad + row_offset(row, p.grad),
            has_residual ? grad_residual + row_offset(row, p.residual) : nullptr,
            has_grad_x ? grad_x + long(row) * p.columns : nullptr,
            has_grad_gate ? grad_gate + long(row) * p.columns : nullptr,
            columns};
  }
};

// What multiplies the normalized x, before a gate.
template <typename T>
static float4 norm_factor(norm_columns columns, const device char* weight, const device char* scale, uint sample,
                          uint chunk, constant norm_params& p) {
  float4 factor = 1.0f;
  if (has_weight) {
    factor = columns.load<T>(weight, parameters_f32, 0, p.weight_stride, chunk) + p.weight_offset;
  }
  if (has_modulation) {
    factor *= 1.0f + columns.load<T>(scale, modulation_f32, sample * p.scale_stride, p.scale_column_stride, chunk);
  }
  return factor;
}

// Four columns' sums of all parts of the threadgroup, which have their threads one after the other.
static void store_sums(norm_part part, device float* sums, uint chunk, float4 value, uint thread_index,
                       threadgroup float4* of_parts, constant norm_params& p) {
  if (p.rows_per_threadgroup > 1) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // of_parts was read
    of_parts[thread_index] = value;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes of_parts
    if (part.first_simdgroup > 0) {
      return;
    }
    for (uint i = 1; i < p.rows_per_threadgroup; ++i) {
      value += of_parts[i * part.columns.threads + thread_index];
    }
  }
  part.columns.store(sums, chunk, value);
}

// norm_backward_row: simdgroups_per_row simdgroups take the rows of a part one after the other; each thread has
// max_columns / max_threads columns of them, of which it keeps its sums for the parameters in registers, and the
// elements of one row (not without `kept`).
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup parts each, all of one sample.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 17664.
// Chosen for rows of at most max_columns columns.
// Necessary: x, grad, gate and grad_residual read once, grad_x and grad_gate written once; about 12 FLOP for each
// element. What the kernel adds:
// - for the parameters, 4 bytes written for each sum and column of a threadgroup, and read by norm_parameters:
//   plan_norm_backward says how many;
// - each part reads the parameters, from cache; without `held` each row does, twice;
// - without `kept` each row reads x, grad and gate twice, x three times where the first sums are needed: again from
//   cache, in the same threadgroup;
// - a row of more than one simdgroup has two barriers (float16 without a mean: one); shorter rows have none; two for
//   each sum of a threadgroup of several parts. With `ahead` the next row is on its way meanwhile.
template <typename T, uint max_columns, uint max_threads>
[[kernel, max_total_threads_per_threadgroup(max_threads)]] void norm_backward_row(
    const device T* x [[buffer(norm_buffer_x)]],
    const device T* gate [[buffer(norm_buffer_gate), function_constant(has_gate)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* scale [[buffer(norm_buffer_scale), function_constant(has_modulation)]],
    const device T* grad [[buffer(norm_buffer_grad)]],
    const device T* grad_residual [[buffer(norm_buffer_grad_residual), function_constant(has_residual)]],
    device T* grad_x [[buffer(norm_buffer_grad_x), function_constant(has_grad_x)]],
    device T* grad_gate [[buffer(norm_buffer_grad_gate), function_constant(has_grad_gate)]],
    device float* partials [[buffer(norm_buffer_partials), function_constant(has_grad_parameters)]],
    constant norm_params& p [[buffer(norm_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint chunks = max_columns / (4 * max_threads);
  threadgroup float2 first_partial[32];
  threadgroup float4 second_partial[2][32];
  threadgroup float4 of_parts[max_threads];
  const ulong index = ulong(group.y) * norm_grid_width + group.x;
  const ulong first_part = index * p.rows_per_threadgroup;
  if (first_part >= ulong(p.samples) * p.parts_per_sample) {
    return;  // the whole threadgroup: the last y may be filled in part
  }
  const norm_part part = part_of(first_part, lane, simdgroup, p);
  const norm_backward_tensors<T> tensors = {x, gate, grad, grad_residual, grad_x, grad_gate};
  const bool first_sums = centered || is_wide<T>();
  float4 a[chunks];
  float4 b[chunks];
  float4 factors[chunks];
  norm_elements<T> elements[chunks];
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    a[chunk] = 0.0f;
    b[chunk] = 0.0f;
    if (held) {
      factors[chunk] = norm_factor<T>(part.columns_of(0), weight, scale, part.sample, chunk, p);
    }
  }
  if (ahead) {
    tensors.row(part.row(0), part.columns_of(0), p).load(elements, p);
  }
  for (uint i = 0; i < p.rows_per_part; ++i) {
    const norm_row_backward<T> slice = tensors.row(part.row(i), part.columns_of(i), p);
    norm_elements<T> next[chunks];
    if (kept && !ahead) {
      slice.load(elements, p);
    }
    norm_statistics s = norm_usual(p);
    if (first_sums) {
      float sum = 0.0f, size = 0.0f;
#pragma clang loop unroll(full)
      for (uint chunk = 0; chunk < chunks; ++chunk) {
        const float4 input = (kept ? elements[chunk] : slice.load_input(chunk, p)).input();
        sum = add_scaled(input, norm_unit, sum);
        size = add_scaled(abs(input), norm_unit, size);
      }
      if (ahead) {
        tensors.row(part.row(i + 1), part.columns_of(i + 1), p).load(next, p);
      }
      s = norm_first(
          simdgroups_sum(float2(sum, size), part.first_simdgroup, p.simdgroups_per_row, lane, simdgroup, first_partial),
          p);
    }
    norm_second_sums second = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const norm_elements<T> e = kept ? elements[chunk] : slice.load(chunk, p);
      const float4 factor = held ? factors[chunk] : norm_factor<T>(slice.columns, weight, scale, part.sample, chunk, p);
      second.add(slice.columns.inside(chunk, s.deviation(e.input())), e.output_grad() * factor);
    }
    if (ahead && !first_sums) {
      tensors.row(part.row(i + 1), part.columns_of(i + 1), p).load(next, p);
    }
    const norm_row_summary summary =
        norm_summary(s,
                     simdgroups_sum(second.sums(), part.first_simdgroup, p.simdgroups_per_row, lane, simdgroup,
                                    second_partial[i & 1]),
                     p);
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const float4 factor = held ? factors[chunk] : norm_factor<T>(slice.columns, weight, scale, part.sample, chunk, p);
      slice.finish(chunk, kept ? elements[chunk] : slice.load(chunk, p), summary, factor, a[chunk], b[chunk], p);
      if (ahead) {
        elements[chunk] = next[chunk];
      }
    }
  }
  if (!has_grad_parameters) {
    return;
  }
  device float* sums = partials + index * (two_sums ? 2 : 1) * p.columns;
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    store_sums(part, sums, chunk, a[chunk], simdgroup * 32 + lane, of_parts, p);
    if (two_sums) {
      store_sums(part, sums + p.columns, chunk, b[chunk], simdgroup * 32 + lane, of_parts, p);
    }
  }
}

// norm_backward_loop: a threadgroup walks over each row of a part for the row's sums, then over all of them, column by
// column.
//
// Grid: x and y together number the parts. Threadgroup: (32 * simdgroups_per_row). Threadgroup bytes: 2176.
// Chosen for rows that fit no row kernel.
// Necessary: as above. What the kernel adds: as above, and x, gate and grad are read twice, x and the gate three times
// where the first sums are needed.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void norm_backward_loop(
    const device T* x [[buffer(norm_buffer_x)]],
    const device T* gate [[buffer(norm_buffer_gate), function_constant(has_gate)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* scale [[buffer(norm_buffer_scale), function_constant(has_modulation)]],
    const device T* grad [[buffer(norm_buffer_grad)]],
    const device T* grad_residual [[buffer(norm_buffer_grad_residual), function_constant(has_residual)]],
    device T* grad_x [[buffer(norm_buffer_grad_x), function_constant(has_grad_x)]],
    device T* grad_gate [[buffer(norm_buffer_grad_gate), function_constant(has_grad_gate)]],
    device float* partials [[buffer(norm_buffer_partials), function_constant(has_grad_parameters)]],
    constant norm_params& p [[buffer(norm_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 first_partial[32];
  threadgroup float4 second_partial[2][32];
  threadgroup norm_row_summary summaries[norm_loop_rows];
  const ulong part_index = ulong(group.y) * norm_grid_width + group.x;
  if (part_index >= ulong(p.samples) * p.parts_per_sample) {
    return;
  }
  const norm_part part = part_of(part_index, lane, simdgroup, p);
  const norm_columns columns = part.columns;
  const norm_backward_tensors<T> tensors = {x, gate, grad, grad_residual, grad_x, grad_gate};
  const uint chunks = (p.columns + 4 * columns.threads - 1) / (4 * columns.threads);
  for (uint i = 0; i < part.rows; ++i) {
    const norm_row_backward<T> slice = tensors.row(part.row(i), columns, p);
    norm_statistics s = norm_usual(p);
    if (centered || is_wide<T>()) {
      float sum = 0.0f, size = 0.0f;
      for (uint chunk = 0; chunk < chunks; ++chunk) {
        const float4 input = slice.load_input(chunk, p).input();
        sum = add_scaled(input, norm_unit, sum);
        size = add_scaled(abs(input), norm_unit, size);
      }
      s = norm_first(simdgroups_sum(float2(sum, size), 0, p.simdgroups_per_row, lane, simdgroup, first_partial), p);
    }
    norm_second_sums second = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const norm_elements<T> e = slice.load(chunk, p);
      second.add(columns.inside(chunk, s.deviation(e.input())),
                 e.output_grad() * norm_factor<T>(columns, weight, scale, part.sample, chunk, p));
    }
    const norm_row_summary summary = norm_summary(
        s, simdgroups_sum(second.sums(), 0, p.simdgroups_per_row, lane, simdgroup, second_partial[i & 1]), p);
    if (columns.thread_index == 0) {
      summaries[i] = summary;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes summaries
  device float* sums = has_grad_parameters ? partials + part_index * (two_sums ? 2 : 1) * p.columns : nullptr;
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    const float4 factor = norm_factor<T>(columns, weight, scale, part.sample, chunk, p);
    float4 a = 0.0f, b = 0.0f;
    for (uint i = 0; i < part.rows; ++i) {
      const norm_row_backward<T> slice = tensors.row(part.row(i), columns, p);
      slice.finish(chunk, slice.load(chunk, p), summaries[i], factor, a, b, p);
    }
    if (has_grad_parameters) {
      columns.store(sums, chunk, a);
      if (two_sums) {
        columns.store(sums + p.columns, chunk, b);
      }
    }
  }
}

template <typename T>
static void store_parameter(device char* data, bool f32, ulong index, float value) {
  if (f32) {
    reinterpret_cast<device float*>(data)[index] = value;
  } else {
    reinterpret_cast<device T*>(data)[index] = T(value);
  }
}

template <typename T>
static float load_parameter(const device char* data, bool f32, long index) {
  return f32 ? reinterpret_cast<const device float*>(data)[index]
             : float(reinterpret_cast<const device T*>(data)[index]);
}

// norm_parameters: the sums of the parts become gradients of weight and bias, and of scale and shift. Lanes are
// columns; the simdgroups divide the parts, or with a modulation the samples, among them.
//
// Grid: x and y together number the threadgroups. Threadgroup: (32 * simdgroups_per_row). Threadgroup bytes: 8192.
// Necessary: the partial sums read once, the gradients written once. One barrier.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void norm_parameters(
    const device float* partials [[buffer(norm_buffer_partials)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* bias [[buffer(norm_buffer_bias), function_constant(has_bias)]],
    const device char* scale [[buffer(norm_buffer_scale), function_constant(has_modulation)]],
    device char* grad_weight [[buffer(norm_buffer_grad_weight), function_constant(has_weight)]],
    device char* grad_bias [[buffer(norm_buffer_grad_bias), function_constant(has_bias)]],
    device char* grad_scale [[buffer(norm_buffer_grad_scale), function_constant(has_modulation)]],
    device char* grad_shift [[buffer(norm_buffer_grad_shift), function_constant(has_modulation)]],
    constant norm_params& p [[buffer(norm_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 sums[32][32];
  const ulong first_column = (ulong(group.y) * norm_grid_width + group.x) * norm_parameter_columns;
  if (first_column >= p.columns) {
    return;
  }
  const uint column = uint(first_column) + lane;
  const bool exists = column < p.columns;
  const ulong step = (two_sums ? 2 : 1) * ulong(p.columns);
  float2 sum = 0.0f;
  if (exists) {
    const device float* part = partials + column;
    if (has_modulation) {
      const float w = has_weight ? load_parameter<T>(weight, parameters_f32, column * p.weight_stride) : 1.0f;
      const float b = has_bias ? load_parameter<T>(bias, parameters_f32, column * p.bias_stride) : 0.0f;
      for (uint sample = simdgroup; sample < p.samples; sample += p.simdgroups_per_row) {
        const device float* first = part + sample * ulong(p.parts_per_sample) * step;
        float2 of_sample = 0.0f;
        for (uint i = 0; i < p.parts_per_sample; ++i) {
          of_sample += float2(first[i * step], first[i * step + p.columns]);
        }
        const ulong index = ulong(sample) * p.columns + column;
        store_parameter<T>(grad_scale, modulation_f32, index, of_sample.x * (w + p.weight_offset) + of_sample.y * b);
        store_parameter<T>(grad_shift, modulation_f32, index, of_sample.y);
        const long at = sample * p.scale_stride + column * p.scale_column_stride;
        sum += of_sample * (1.0f + load_parameter<T>(scale, modulation_f32, at));
      }
    } else {
      for (uint i = simdgroup; i < p.parts_per_sample; i += p.simdgroups_per_row) {
        sum.x += part[i * step];
        if (two_sums) {
          sum.y += part[i * step + p.columns];
        }
      }
    }
  }
  sums[simdgroup][lane] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes sums
  if (simdgroup == 0 && exists) {
    for (uint i = 1; i < p.simdgroups_per_row; ++i) {
      sum += sums[i][lane];
    }
    if (has_weight) {
      store_parameter<T>(grad_weight, parameters_f32, column, sum.x);
    }
    if (has_bias) {
      store_parameter<T>(grad_bias, parameters_f32, column, sum.y);
    }
  }
}

#define INSTANTIATE_ROW(dtype, T, columns, threads)                            \
  template [[host_name("norm_backward_row_" #dtype "_d" #columns)]] [[kernel]] \
  decltype(norm_backward_row<T, columns, threads>) norm_backward_row<T, columns, threads>;
NORM_BACKWARD_ROW_VARIANTS(INSTANTIATE_ROW)

#define INSTANTIATE_LOOP(dtype, T)                                \
  template [[host_name("norm_backward_loop_" #dtype)]] [[kernel]] \
  decltype(norm_backward_loop<T>) norm_backward_loop<T>;
NORM_BACKWARD_LOOP_VARIANTS(INSTANTIATE_LOOP)

#define INSTANTIATE_PARAMETERS(dtype, T) \
  template [[host_name("norm_parameters_" #dtype)]] [[kernel]] decltype(norm_parameters<T>) norm_parameters<T>;
NORM_PARAMETERS_VARIANTS(INSTANTIATE_PARAMETERS)
