// Group normalization, forward and backward:
//
//   out = act((x - mean) / sqrt(variance + eps) * weight[channel] + bias[channel])
//
// with the statistics of each group of channels of each sample, and act nothing or silu; in float32, rounded once.
// Group normalization: Wu and He, 2018. Statistics of parts merged: Chan, Golub and LeVeque, 1983.

#include <metal_stdlib>

#include "common/reductions.h"
#include "norm_rows.h"
#include "norm_variants.h"

using namespace metal;
using namespace mpsk;

constant bool channels_last [[function_constant(norm_constant_channels_last)]];
constant bool has_silu [[function_constant(norm_constant_silu)]];
constant bool parts_out [[function_constant(norm_constant_parts_out)]];
constant bool statistics_in [[function_constant(norm_constant_statistics_in)]];
constant bool has_out [[function_constant(norm_constant_out)]];
constant bool parts_in [[function_constant(norm_constant_parts_in)]];
constant bool staged [[function_constant(norm_constant_staged)]];

template <typename T>
static float parameter_or(const device char* data, bool has, long at, float none) {
  if (!has) {
    return none;
  }
  return parameters_f32 ? reinterpret_cast<const device float*>(data)[at]
                        : float(reinterpret_cast<const device T*>(data)[at]);
}

// The elements that a thread has of a part of a row, in chunks of four. With `vectors` the four are adjacent, of one
// channel or with channels last of four, and move as one.
struct group_part {
  uint row;
  uint first;
  uint end;  // of the row's elements; first where there is no part, of which nothing is read or written
  uint threads;
  uint thread_index;

  uint element(uint chunk, uint i) const {
    return first + (vectors ? (chunk * threads + thread_index) * 4 + i : (chunk * 4 + i) * threads + thread_index);
  }
  static uint channel_in_group(uint element, constant group_norm_params& p) {
    return channels_last ? element % p.group_channels : element / p.positions;
  }
  uint channel(uint element, constant group_norm_params& p) const {
    return row % p.groups * p.group_channels + channel_in_group(element, p);
  }
  long offset(uint element, constant group_norm_strides& strides, constant group_norm_params& p) const {
    const uint position = channels_last ? element / p.group_channels : element % p.positions;
    return (row / p.groups) * strides.sample + channel(element, p) * strides.channel + position * strides.position;
  }

  float4 inside(uint chunk, float4 values) const {
    for (uint i = 0; i < 4; ++i) {
      values[i] = element(chunk, i) < end ? values[i] : 0.0f;
    }
    return values;
  }

  // Zeros past the end.
  template <typename T>
  float4 load(const device T* data, constant group_norm_strides& strides, uint chunk,
              constant group_norm_params& p) const {
    float4 values = 0.0f;
    if (vectors) {
      const uint e = element(chunk, 0);
      if (e < end) {
        values = float4(*reinterpret_cast<const device vec<T, 4>*>(data + offset(e, strides, p)));
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        const uint e = element(chunk, i);
        if (e < end) {
          values[i] = float(data[offset(e, strides, p)]);
        }
      }
    }
    return values;
  }

  template <typename T>
  void store(device T* data, constant group_norm_strides& strides, uint chunk, float4 values,
             constant group_norm_params& p) const {
    if (vectors) {
      const uint e = element(chunk, 0);
      if (e < end) {
        *reinterpret_cast<device vec<T, 4>*>(data + offset(e, strides, p)) = vec<T, 4>(values);
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        const uint e = element(chunk, i);
        if (e < end) {
          data[offset(e, strides, p)] = T(values[i]);
        }
      }
    }
  }

  // Of the channels of a chunk; `none` past the end.
  template <typename T>
  float4 parameter(const device char* data, long stride, float none, uint chunk, constant group_norm_params& p) const {
    float4 values = none;
    for (uint i = 0; i < 4; ++i) {
      const uint e = element(chunk, i);
      if (e < end) {
        values[i] = parameter_or<T>(data, true, channel(e, p) * stride, none);
      }
    }
    return values;
  }

  // The channels of the group that the part touches are numbered from here.
  uint first_channel(constant group_norm_params& p) const { return channels_last ? 0 : first / p.positions; }

  // Weight and bias of those channels, for the part's threads to share.
  template <typename T>
  void stage(threadgroup float2* to, const device char* weight, const device char* bias,
             constant group_norm_params& p) const {
    const uint before = first_channel(p);
    const uint channels = end == first ? 0 : channels_last ? p.group_channels : (end - 1) / p.positions + 1 - before;
    for (uint i = thread_index; i < channels; i += threads) {
      const uint at = row % p.groups * p.group_channels + before + i;
      to[i] = float2(parameter_or<T>(weight, has_weight, at * p.weight_stride, 1.0f),
                     parameter_or<T>(bias, has_bias, at * p.bias_stride, 0.0f));
    }
  }
  float4 apply(float4 values, const threadgroup float2* from, uint chunk, constant group_norm_params& p) const {
    const uint before = first_channel(p);
    for (uint i = 0; i < 4; ++i) {
      const uint e = element(chunk, i);
      if (e < end) {
        const float2 parameters = from[channel_in_group(e, p) - before];
        values[i] = values[i] * parameters.x + parameters.y;
      }
    }
    return values;
  }
};

static float4 silu_slope(float4 z) {
  const float4 sig = sigmoid(z);
  return sig * (1.0f + z * (1.0f - sig));
}

// The statistics of a row from the sums of its parts, by one simdgroup. A part holds its mean and, in the same scale,
// the sums of deviations from it and of their squares; the scale is that which the part's sum of |x| asks for.
static norm_statistics merged(const device float4* parts, uint lane, constant group_norm_params& p) {
  float size = 0.0f;
  for (uint i = lane; i < p.parts_per_row; i += 32) {
    size += parts[i].y;
  }
  size = simd_sum(size);
  const bool large = !(size < p.large);
  const float shrink = p.scale_large / p.scale;
  norm_statistics s;
  s.scale = large ? p.scale_large : p.scale;
  s.eps = large ? p.eps_large : p.eps;
  s.mean = parts[0].x * (large && parts[0].y < p.large ? shrink : 1.0f);
  // The mean as its distance from the first part's.
  float sum = 0.0f;
  for (uint i = lane; i < p.parts_per_row; i += 32) {
    const float4 part = parts[i];
    const float scale = large && part.y < p.large ? shrink : 1.0f;
    const float count = float(min(p.part_elements, p.columns - i * p.part_elements));
    sum += part.z * scale + count * (part.x * scale - s.mean);
  }
  s.correction = simd_sum(sum) / float(p.columns);
  float square = 0.0f;
  for (uint i = lane; i < p.parts_per_row; i += 32) {
    const float4 part = parts[i];
    const float scale = large && part.y < p.large ? shrink : 1.0f;
    const float count = float(min(p.part_elements, p.columns - i * p.part_elements));
    const float away = (part.x * scale - s.mean) - s.correction;
    square += part.w * scale * scale + away * (2.0f * part.z * scale + count * away);
  }
  s.rstd = precise::rsqrt(max(simd_sum(square) / float(p.columns), 0.0f) + s.eps);
  return s;
}

// norm_group_part: a part of a row, or a whole row of up to norm_part_elements, in registers.
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup parts each.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 8736.
// Necessary: x read once, out written once. Rows of one part do just that, in one launch with two barriers. Longer rows
// exceed the registers of a threadgroup, and a part cannot wait for the others of its row: Metal promises no progress
// of one threadgroup while another waits. So x is read twice, in two launches: with parts_out (16 bytes written for
// each part), then with parts_in, where each threadgroup merges the parts of its row, 16 bytes each, read three times.
// Rows of more than norm_merged_parts, where that would be over 3 % of the bytes, have norm_group_merge between the
// two, and the second has statistics_in. With `staged` each part reads the parameters of its channels once, else each
// element does, from cache.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void norm_group_part(
    const device T* x [[buffer(norm_buffer_x)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* bias [[buffer(norm_buffer_bias), function_constant(has_bias)]],
    const device norm_statistics* statistics [[buffer(norm_buffer_statistics), function_constant(statistics_in)]],
    device T* out [[buffer(norm_buffer_out), function_constant(has_out)]],
    device float4* parts [[buffer(norm_buffer_parts), function_constant(parts_out)]],
    const device float4* all_parts [[buffer(norm_buffer_parts_in), function_constant(parts_in)]],
    constant group_norm_params& p [[buffer(norm_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint chunks = norm_part_elements / (4 * norm_row_threads);
  threadgroup float2 partial[2][32];
  threadgroup float2 parameters[norm_staged_channels];
  threadgroup norm_statistics of_row;
  const ulong first_part = (ulong(group.y) * norm_grid_width + group.x) * p.rows_per_threadgroup;
  const ulong count_of_parts = ulong(p.rows) * p.parts_per_row;
  if (first_part >= count_of_parts) {
    return;  // the whole threadgroup: the last y may be filled in part
  }
  const uint in_group = simdgroup / p.simdgroups_per_row;
  const uint first_simdgroup = in_group * p.simdgroups_per_row;
  const bool exists = first_part + in_group < count_of_parts;
  const ulong part_index = exists ? first_part + in_group : 0;
  const uint in_row = uint(part_index % p.parts_per_row);
  const uint first = in_row * p.part_elements;
  const uint count = min(p.part_elements, p.columns - first);
  const group_part part = {uint(part_index / p.parts_per_row), first, first + (exists ? count : 0),
                           p.simdgroups_per_row * 32, (simdgroup - first_simdgroup) * 32 + lane};
  float4 values[chunks];
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    values[chunk] = part.load(x, p.x, chunk, p);
  }
  threadgroup float2* of_channels = parameters + in_group * (norm_staged_channels / p.rows_per_threadgroup);
  if (staged) {
    part.stage<T>(of_channels, weight, bias, p);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // publishes it; of more simdgroups, the next barrier does
  }
  norm_statistics s;
  if (statistics_in) {
    s = statistics[part.row];
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes the parameters
  } else if (parts_in) {
    if (simdgroup == 0) {
      s = merged(all_parts + ulong(part.row) * p.parts_per_row, lane, p);
      if (lane == 0) {
        of_row = s;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes of_row and the parameters
    s = of_row;
  } else {
    float sum = 0.0f, size = 0.0f;
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      sum = add_scaled(values[chunk], norm_unit, sum);
      size = add_scaled(abs(values[chunk]), norm_unit, size);
    }
    const float2 sums =
        simdgroups_sum(float2(sum, size), first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial[0]);
    s = norm_first(sums, p);
    if (in_row + 1 == p.parts_per_row) {
      s.mean = sums.x * (sums.y < p.large ? p.last_mean_scale : p.last_mean_scale_large);
    }
    float4 a = 0.0f, b = 0.0f;
#pragma clang loop unroll(full)
    for (uint chunk = 0; chunk < chunks; ++chunk) {
      const float4 deviation = part.inside(chunk, fma(values[chunk], float4(s.scale), -s.mean));
      a += deviation;
      b = fma(deviation, deviation, b);
    }
    const float2 seconds =
        simdgroups_sum(float2(total(a), total(b)), first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial[1]);
    if (parts_out) {
      if (exists && part.thread_index == 0) {
        parts[part_index] = float4(s.mean, sums.y, seconds.x, seconds.y);
      }
      return;
    }
    s = norm_second(s, seconds, p);
  }
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    float4 result = s.x_hat(values[chunk]);
    if (staged) {
      result = part.apply(result, of_channels, chunk, p);
    } else {
      if (has_weight) {
        result *= part.parameter<T>(weight, p.weight_stride, 1.0f, chunk, p);
      }
      if (has_bias) {
        result += part.parameter<T>(bias, p.bias_stride, 0.0f, chunk, p);
      }
    }
    if (has_silu) {
      result *= sigmoid(result);
    }
    part.store(out, p.out, chunk, result, p);
  }
}

// norm_group_merge: the sums of its parts become the statistics of a row, where each threadgroup of the row would read
// too many parts to do it itself.
//
// Grid: x and y together number the rows. Threadgroup: (32). Threadgroup bytes: 0.
// Necessary: 16 bytes for each part read once, 20 bytes for each row written once; read three times, from cache.
kernel void norm_group_merge(const device float4* parts [[buffer(norm_buffer_parts)]],
                             device norm_statistics* statistics [[buffer(norm_buffer_statistics)]],
                             constant group_norm_params& p [[buffer(norm_buffer_params)]],
                             uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]]) {
  const ulong row = ulong(group.y) * norm_grid_width + group.x;
  if (row >= p.rows) {
    return;
  }
  const norm_statistics s = merged(parts + row * p.parts_per_row, lane, p);
  if (lane == 0) {
    statistics[row] = s;
  }
}

// norm_group_sums: of each channel of each sample, the sums of grad * x_hat and of grad, before the activation.
//
// Grid: x and y together number the threadgroups: channels of samples, or with channels last blocks of 32 of them,
// which are lanes. Threadgroup: (32 * simdgroups_per_row). Threadgroup bytes: 8448.
// Necessary: x and grad read once, 8 bytes for each channel of each sample written once. One barrier.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void norm_group_sums(
    const device T* x [[buffer(norm_buffer_x)]], const device T* grad [[buffer(norm_buffer_grad)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* bias [[buffer(norm_buffer_bias), function_constant(has_bias)]],
    const device norm_statistics* statistics [[buffer(norm_buffer_statistics)]],
    device float* sums [[buffer(norm_buffer_partials)]], constant group_norm_params& p [[buffer(norm_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 of_lanes[32][32];
  threadgroup float2 partial[32];
  const uint channels = p.groups * p.group_channels;
  const uint blocks = channels_last ? (channels + 31) / 32 : channels;
  const ulong index = ulong(group.y) * norm_grid_width + group.x;
  if (index >= ulong(p.rows / p.groups) * blocks) {
    return;
  }
  const uint sample = uint(index / blocks);
  const uint block = uint(index % blocks);
  const uint channel = channels_last ? block * 32 + lane : block;
  const bool exists = channel < channels;
  float2 sum = 0.0f;
  if (exists) {
    const norm_statistics s = statistics[sample * p.groups + channel / p.group_channels];
    const float w = parameter_or<T>(weight, has_weight, channel * p.weight_stride, 1.0f);
    const float b = parameter_or<T>(bias, has_bias, channel * p.bias_stride, 0.0f);
    x += sample * p.x.sample + channel * p.x.channel;
    grad += sample * p.grad.sample + channel * p.grad.channel;
    const uint width = vectors && !channels_last ? 4 : 1;
    const uint step = (channels_last ? 1 : 32) * p.simdgroups_per_row * width;
    for (uint position = (channels_last ? simdgroup : simdgroup * 32 + lane) * width; position < p.positions;
         position += step) {
      float4 value = 0.0f, g = 0.0f;
      if (width == 4) {
        value = float4(*reinterpret_cast<const device vec<T, 4>*>(x + position));
        g = float4(*reinterpret_cast<const device vec<T, 4>*>(grad + position));
      } else {
        value.x = float(x[position * p.x.position]);
        g.x = float(grad[position * p.grad.position]);
      }
      const float4 x_hat = s.x_hat(value);
      if (has_silu) {
        g *= silu_slope(x_hat * w + b);
      }
      sum += float2(total(g * x_hat), total(g));
    }
  }
  if (channels_last) {
    of_lanes[simdgroup][lane] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes of_lanes
    for (uint i = 0; i < p.simdgroups_per_row; ++i) {
      sum = i == 0 ? of_lanes[0][lane] : sum + of_lanes[i][lane];
    }
  } else {
    sum = simdgroups_sum(sum, 0, p.simdgroups_per_row, lane, simdgroup, partial);
  }
  if (exists && simdgroup == 0 && (channels_last || lane == 0)) {
    device float* of_sample = sums + ulong(sample) * 2 * channels;
    of_sample[channel] = sum.x;
    of_sample[channels + channel] = sum.y;
  }
}

// norm_group_grad: the gradient of x, of a part of a row.
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup parts each.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 256.
// Necessary: x and grad read once, the gradient written once; 8 bytes for each channel of the group read by each part.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(norm_row_threads)]] void norm_group_grad(
    const device T* x [[buffer(norm_buffer_x)]], const device T* grad [[buffer(norm_buffer_grad)]],
    const device char* weight [[buffer(norm_buffer_weight), function_constant(has_weight)]],
    const device char* bias [[buffer(norm_buffer_bias), function_constant(has_bias)]],
    const device norm_statistics* statistics [[buffer(norm_buffer_statistics)]],
    const device float* sums [[buffer(norm_buffer_partials)]], device T* grad_x [[buffer(norm_buffer_grad_x)]],
    constant group_norm_params& p [[buffer(norm_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 partial[32];
  const ulong first_part = (ulong(group.y) * norm_grid_width + group.x) * p.rows_per_threadgroup;
  const ulong all_parts = ulong(p.rows) * p.parts_per_row;
  if (first_part >= all_parts) {
    return;  // the whole threadgroup: the last y may be filled in part
  }
  const uint in_group = simdgroup / p.simdgroups_per_row;
  const uint first_simdgroup = in_group * p.simdgroups_per_row;
  const bool exists = first_part + in_group < all_parts;
  const ulong part_index = exists ? first_part + in_group : 0;
  const uint first = uint(part_index % p.parts_per_row) * p.part_elements;
  const uint count = exists ? min(p.part_elements, p.columns - first) : 0;
  const group_part part = {uint(part_index / p.parts_per_row), first, first + count, p.simdgroups_per_row * 32,
                           (simdgroup - first_simdgroup) * 32 + lane};
  const uint channels = p.groups * p.group_channels;
  const uint first_channel = part.row % p.groups * p.group_channels;
  const device float* of_sample = sums + ulong(part.row / p.groups) * 2 * channels;
  float2 sum = 0.0f;
  for (uint i = part.thread_index; i < p.group_channels; i += part.threads) {
    const uint channel = first_channel + i;
    sum += float2(of_sample[channel], of_sample[channels + channel]) *
           parameter_or<T>(weight, has_weight, channel * p.weight_stride, 1.0f);
  }
  const float2 means =
      simdgroups_sum(sum, first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial) / float(p.columns);
  const norm_statistics s = statistics[part.row];
  const uint chunks = (count + 4 * part.threads - 1) / (4 * part.threads);
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    const float4 x_hat = s.x_hat(part.load(x, p.x, chunk, p));
    float4 g = part.load(grad, p.grad, chunk, p);
    float4 w = 1.0f;
    if (has_weight) {
      w = part.parameter<T>(weight, p.weight_stride, 1.0f, chunk, p);
    }
    if (has_silu) {
      float4 z = x_hat * w;
      if (has_bias) {
        z += part.parameter<T>(bias, p.bias_stride, 0.0f, chunk, p);
      }
      g *= silu_slope(z);
    }
    part.store(grad_x, p.out, chunk, (g * w - means.y - x_hat * means.x) * s.rstd * s.scale, p);
  }
}

#define INSTANTIATE_PART(dtype, T) \
  template [[host_name("norm_group_part_" #dtype)]] [[kernel]] decltype(norm_group_part<T>) norm_group_part<T>;
NORM_GROUP_PART_VARIANTS(INSTANTIATE_PART)

#define INSTANTIATE_SUMS(dtype, T) \
  template [[host_name("norm_group_sums_" #dtype)]] [[kernel]] decltype(norm_group_sums<T>) norm_group_sums<T>;
NORM_GROUP_SUMS_VARIANTS(INSTANTIATE_SUMS)

#define INSTANTIATE_GRAD(dtype, T) \
  template [[host_name("norm_group_grad_" #dtype)]] [[kernel]] decltype(norm_group_grad<T>) norm_group_grad<T>;
NORM_GROUP_GRAD_VARIANTS(INSTANTIATE_GRAD)
