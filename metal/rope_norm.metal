// The root mean square norm of each head, with weights of its columns, and the rotation of rope.metal, in one pass; and
// the gradients of both. Over the columns of a head:
//
//   n = x / sqrt(mean of x^2 + eps) * (weight + weight_offset), out = n turned
//   g = the gradient of out, turned back; h = g * (weight + weight_offset); x_hat = x / sqrt(mean of x^2 + eps)
//   gradient of x = (h - x_hat * mean(h * x_hat)) / sqrt(mean of x^2 + eps)
//   gradient of weight = sum of g * x_hat over all heads and positions
//
// in float32, rounded once. Root mean square layer normalization: Zhang and Sennrich, 2019. Norms of queries and keys:
// Dehghani et al., Scaling vision transformers to 22 billion parameters, 2023. The sum of squares at two scales: Blue,
// A portable Fortran program to find the Euclidean norm of a vector, 1978.

#include <metal_stdlib>

#include "rope_rotation.h"
#include "rope_variants.h"

using namespace metal;
using namespace mpsk;

constant bool vectors [[function_constant(rope_constant_vectors)]];
constant bool has_weights [[function_constant(rope_constant_weights)]];
constant bool weights_f32 [[function_constant(rope_constant_weights_f32)]];
constant bool has_grad_x [[function_constant(rope_constant_grad_x)]];
constant bool has_grad_weights [[function_constant(rope_constant_grad_weights)]];
constant bool has_k_weight = has_k && has_weights;
constant bool has_k_grad_x = has_k && has_grad_x;
constant bool has_k_grad_weights = has_k && has_grad_weights;

// Four pairs of columns, the first of each in a; with vectors of interleaved pairs, whole pairs, two in a and two in b,
// so that neighbouring threads touch neighbouring columns. Behind the pairs, a has four columns that are not turned.
struct rope_quad {
  float4 a;
  float4 b;

  float sum_of_products(rope_quad other) const {
    const float4 products = fma(a, other.a, b * other.b);
    return (products.x + products.y) + (products.z + products.w);
  }
};

inline rope_quad product(rope_quad x, rope_quad y) { return {x.a * y.a, x.b * y.b}; }
inline rope_quad product(rope_quad x, float y) { return {x.a * y, x.b * y}; }

// Which columns a quad has.
struct rope_columns {
  uint first;
  uint other;  // how far behind the columns of a those of b lie
  uint step;
  uint count;  // pairs or columns; 0: the quad does not exist
  bool turned;

  // Zeros for what does not exist.
  template <typename E>
  rope_quad load(const device E* row, long stride) const {
    rope_quad quad = {float4(0.0f), float4(0.0f)};
    if (count == 0) {
      return quad;
    }
    if (vectors) {
      quad.a = float4(*reinterpret_cast<const device vec<E, 4>*>(row + first));
      if (turned) {
        quad.b = float4(*reinterpret_cast<const device vec<E, 4>*>(row + first + other));
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        if (i < count) {
          quad.a[i] = float(row[(first + i * step) * stride]);
          if (turned) {
            quad.b[i] = float(row[(first + i * step + other) * stride]);
          }
        }
      }
    }
    return quad;
  }

  // Rounds, to a contiguous row.
  template <typename E>
  void store(device E* row, rope_quad quad) const {
    if (count == 0) {
      return;
    }
    if (vectors) {
      *reinterpret_cast<device vec<E, 4>*>(row + first) = vec<E, 4>(quad.a);
      if (turned) {
        *reinterpret_cast<device vec<E, 4>*>(row + first + other) = vec<E, 4>(quad.b);
      }
    } else {
      for (uint i = 0; i < 4; ++i) {
        if (i < count) {
          row[first + i * step] = E(quad.a[i]);
          if (turned) {
            row[first + i * step + other] = E(quad.b[i]);
          }
        }
      }
    }
  }
};

inline rope_columns columns_of(uint quad, constant rope_norm_params& p) {
  const uint pairs = p.rotation.pairs, turned = (pairs + 3) / 4;
  if (quad < turned) {
    const uint count = min(4u, pairs - 4 * quad);
    if (interleaved && !vectors) {
      return {8 * quad, 1, 2, count, true};
    }
    return {4 * quad, pairs, 1, count, true};
  }
  const uint first = 2 * pairs + 4 * (quad - turned);
  return {first, 0, 1, first < p.columns ? min(4u, p.columns - first) : 0, false};
}

// A thread's part of a unit.
struct rope_unit {
  uint which;  // 0: q, 1: k
  uint batch;
  uint index;  // of the position
  uint first_head;
  uint heads;  // 0: the unit does not exist
  uint lane;

  long at(uint head, uint strides_of, constant int64_t (&strides)[2][4]) const {
    return long(batch) * strides[strides_of][0] + long(head) * strides[strides_of][1] +
           long(index) * strides[strides_of][2];
  }
  // Of a row of the results.
  ulong at(uint head, constant rope_norm_params& p) const {
    return ((ulong(batch) * p.heads[which] + head) * p.length + index) * p.columns;
  }
};

// The threadgroups of q, and their units, come before those of k.
inline rope_unit unit_of(uint2 group, uint thread_index, constant rope_norm_params& p) {
  const ulong threadgroup_index = ulong(group.y) * rope_grid_width + group.x;
  rope_unit unit;
  unit.which = has_k && threadgroup_index >= p.parts[0] ? 1 : 0;
  const ulong number = (threadgroup_index - (unit.which == 1 ? p.parts[0] : 0)) * (rope_threads / p.lanes) +
                       thread_index / p.lanes;  // past the last one where the last y of the grid is filled in part
  const bool exists = number < p.units[unit.which];
  const uint rest = exists ? uint(number) : 0;
  const uint group_index = rest / p.length % p.head_groups[unit.which];
  unit.batch = rest / p.length / p.head_groups[unit.which];
  unit.index = rest % p.length;
  unit.first_head = group_index * p.heads_per_unit;
  unit.heads = exists ? min(p.heads_per_unit, p.heads[unit.which] - unit.first_head) : 0;
  unit.lane = thread_index % p.lanes;
  return unit;
}

// Over the lanes of a unit, all of which call it.
template <typename V>
inline V unit_sum(V value, uint lanes) {
  for (uint step = lanes / 2; step > 0; step /= 2) {
    value += simd_shuffle_xor(value, ushort(step));
  }
  return value;
}

// What a thread knows of its columns, for all heads of its unit.
template <typename T>
struct rope_column {
  rope_columns columns;
  float4 cosines;
  float4 sines;
  rope_quad weight;  // and its offset

  rope_quad turn(rope_quad x, float direction) const {
    if (!columns.turned) {
      return x;
    }
    const float4 s = sines * direction;
    if (interleaved && vectors) {
      return {x.a * cosines.xxyy + float4(-x.a.y, x.a.x, -x.a.w, x.a.z) * s.xxyy,
              x.b * cosines.zzww + float4(-x.b.y, x.b.x, -x.b.w, x.b.z) * s.zzww};
    }
    return {x.a * cosines - x.b * s, x.b * cosines + x.a * s};
  }
};

template <typename T>
inline rope_column<T> column_of(rope_unit unit, uint quad, rope_table<T> entries, const device char* weight,
                                constant rope_norm_params& p) {
  rope_column<T> c;
  c.columns = columns_of(quad, p);
  float cosines[4] = {1.0f, 1.0f, 1.0f, 1.0f}, sines[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (unit.heads == 0) {
    c.columns.count = 0;
  }
  if (c.columns.turned && c.columns.count > 0) {
    if (interleaved && vectors) {
      const uint second = p.rotation.pairs / 2 + 2 * quad;
      load_rotations<T, 4>(entries, p.rotation, unit.batch, unit.index, 2 * quad, 2, cosines, sines);
      load_rotations<T, 4>(entries, p.rotation, unit.batch, unit.index, second, 2, cosines + 2, sines + 2);
    } else {
      load_rotations<T, 4>(entries, p.rotation, unit.batch, unit.index, 4 * quad, c.columns.count, cosines, sines);
    }
  }
  c.cosines = float4(cosines[0], cosines[1], cosines[2], cosines[3]);
  c.sines = float4(sines[0], sines[1], sines[2], sines[3]);
  c.weight.a = 1.0f;
  c.weight.b = 1.0f;
  if (has_weights) {
    const long stride = p.weight_strides[unit.which];
    c.weight = weights_f32 ? c.columns.load(reinterpret_cast<const device float*>(weight), stride)
                           : c.columns.load(reinterpret_cast<const device T*>(weight), stride);
    c.weight.a += p.weight_offset;
    c.weight.b += p.weight_offset;
  }
  return c;
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

struct rope_root {
  float scale;
  float rstd;
};

template <typename T>
inline rope_root root_of(float square, float small_square, constant rope_norm_params& p) {
  const bool large = is_wide<T>() && !(square < 1.329228e36f);  // 2^120
  const float mean = (large ? small_square : square) / float(p.columns);
  return {large ? p.scale_large : p.scale, precise::rsqrt(mean + (large ? p.eps_large : p.eps))};
}

// rope_norm_rows: a thread has the same columns of all heads of its unit: rotations and weights serve them all.
//
// Grid: x and y together number the threadgroups. Threadgroup: (rope_threads). Threadgroup bytes: 0.
// Chosen for heads whose quads its threads hold.
// Necessary: q and k read once, written once; a table, the positions and the weights read once; about 10 FLOP for each
// column. What the kernel adds:
// - each unit reads table, positions and weights, from cache but for the first, or computes its rotations, as
// rope_rotate;
// - a shuffle for each doubling of the lanes; where their number, of a head's quads, is no power of 2, some idle.
template <typename T, uint quads>
[[kernel, max_total_threads_per_threadgroup(rope_threads)]] void rope_norm_rows(
    const device T* q [[buffer(rope_buffer_q)]], const device T* k [[buffer(rope_buffer_k), function_constant(has_k)]],
    const device T* cos_table [[buffer(rope_buffer_cos), function_constant(table)]],
    const device T* sin_table [[buffer(rope_buffer_sin), function_constant(table)]],
    const device float* cos_f32 [[buffer(rope_buffer_cos_f32), function_constant(table_f32)]],
    const device float* sin_f32 [[buffer(rope_buffer_sin_f32), function_constant(table_f32)]],
    const device int* i32 [[buffer(rope_buffer_positions_i32), function_constant(positions_i32)]],
    const device long* i64 [[buffer(rope_buffer_positions_i64), function_constant(positions_i64)]],
    const device char* q_weight [[buffer(rope_buffer_q_weight), function_constant(has_weights)]],
    const device char* k_weight [[buffer(rope_buffer_k_weight), function_constant(has_k_weight)]],
    device T* q_out [[buffer(rope_buffer_q_out)]],
    device T* k_out [[buffer(rope_buffer_k_out), function_constant(has_k)]],
    constant rope_norm_params& p [[buffer(rope_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  const rope_unit unit = unit_of(group, thread_index, p);
  const bool of_k = has_k && unit.which == 1;
  const device T* from = of_k ? k : q;
  device T* to = of_k ? k_out : q_out;
  const device char* weight = has_k_weight && of_k ? k_weight : q_weight;
  const rope_table<T> entries = {cos_table, sin_table, cos_f32, sin_f32, i32, i64};
  rope_column<T> columns[quads];
#pragma clang loop unroll(full)
  for (uint i = 0; i < quads; ++i) {
    columns[i] = column_of<T>(unit, unit.lane + i * p.lanes, entries, weight, p);
  }
  for (uint h = unit.first_head; h < unit.first_head + unit.heads; ++h) {
    const device T* row = from + unit.at(h, unit.which, p.strides);
    rope_quad x[quads];
    float2 squares = 0.0f;  // at two scales
#pragma clang loop unroll(full)
    for (uint i = 0; i < quads; ++i) {
      x[i] = columns[i].columns.load(row, p.strides[unit.which][3]);
      const rope_quad usual = product(x[i], p.scale), small = product(x[i], p.scale_large);
      squares.x += usual.sum_of_products(usual);
      squares.y += is_wide<T>() ? small.sum_of_products(small) : 0.0f;
    }
    squares = unit_sum(squares, p.lanes);
    const rope_root root = root_of<T>(squares.x, squares.y, p);
    device T* row_out = to + unit.at(h, p);
#pragma clang loop unroll(full)
    for (uint i = 0; i < quads; ++i) {
      const rope_quad x_hat = product(product(x[i], root.scale), root.rstd);
      columns[i].columns.store(row_out, columns[i].turn(product(x_hat, columns[i].weight), 1.0f));
    }
  }
}

// rope_norm_backward: the same units, whose threads keep the sums of their columns for the weights' gradients.
//
// Grid, threadgroup: as above. Threadgroup bytes: 8192.
// Chosen as above.
// Necessary: q, k and the gradients of the results read once, those of q and k written once; about 25 FLOP for each
// column. What the kernel adds: as above, and for the weights 4 bytes written for each column of a threadgroup, which
// is rope_threads / lanes units; two barriers for each quad, and two shuffles or so.
template <typename T, uint quads>
[[kernel, max_total_threads_per_threadgroup(rope_threads)]] void rope_norm_backward(
    const device T* q [[buffer(rope_buffer_q)]], const device T* k [[buffer(rope_buffer_k), function_constant(has_k)]],
    const device T* cos_table [[buffer(rope_buffer_cos), function_constant(table)]],
    const device T* sin_table [[buffer(rope_buffer_sin), function_constant(table)]],
    const device float* cos_f32 [[buffer(rope_buffer_cos_f32), function_constant(table_f32)]],
    const device float* sin_f32 [[buffer(rope_buffer_sin_f32), function_constant(table_f32)]],
    const device int* i32 [[buffer(rope_buffer_positions_i32), function_constant(positions_i32)]],
    const device long* i64 [[buffer(rope_buffer_positions_i64), function_constant(positions_i64)]],
    const device char* q_weight [[buffer(rope_buffer_q_weight), function_constant(has_weights)]],
    const device char* k_weight [[buffer(rope_buffer_k_weight), function_constant(has_k_weight)]],
    const device T* grad_q [[buffer(rope_buffer_grad_q)]],
    const device T* grad_k [[buffer(rope_buffer_grad_k), function_constant(has_k)]],
    device T* q_out [[buffer(rope_buffer_q_out), function_constant(has_grad_x)]],
    device T* k_out [[buffer(rope_buffer_k_out), function_constant(has_k_grad_x)]],
    device float* partials [[buffer(rope_buffer_partials), function_constant(has_grad_weights)]],
    constant rope_norm_params& p [[buffer(rope_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float4 sums[rope_threads / 32][2][32];
  const rope_unit unit = unit_of(group, thread_index, p);
  const bool of_k = has_k && unit.which == 1;
  const device T* from = of_k ? k : q;
  const device T* grads = of_k ? grad_k : grad_q;
  const device char* weight = has_k_weight && of_k ? k_weight : q_weight;
  const rope_table<T> entries = {cos_table, sin_table, cos_f32, sin_f32, i32, i64};
  rope_column<T> columns[quads];
  rope_quad of_weight[quads];
#pragma clang loop unroll(full)
  for (uint i = 0; i < quads; ++i) {
    columns[i] = column_of<T>(unit, unit.lane + i * p.lanes, entries, weight, p);
    of_weight[i] = {float4(0.0f), float4(0.0f)};
  }
  for (uint h = unit.first_head; h < unit.first_head + unit.heads; ++h) {
    const device T* row = from + unit.at(h, unit.which, p.strides);
    const device T* grad = grads + unit.at(h, unit.which, p.grad_strides);
    rope_quad x[quads], g[quads];
    float4 totals = 0.0f;  // at two scales: squares, and x times the gradient of x_hat
#pragma clang loop unroll(full)
    for (uint i = 0; i < quads; ++i) {
      x[i] = columns[i].columns.load(row, p.strides[unit.which][3]);
      g[i] = columns[i].turn(columns[i].columns.load(grad, p.grad_strides[unit.which][3]), -1.0f);
      const rope_quad of_x_hat = product(g[i], columns[i].weight);
      const rope_quad usual = product(x[i], p.scale), small = product(x[i], p.scale_large);
      totals.x += usual.sum_of_products(usual);
      totals.y += usual.sum_of_products(of_x_hat);
      if (is_wide<T>()) {
        totals.z += small.sum_of_products(small);
        totals.w += small.sum_of_products(of_x_hat);
      }
    }
    if (is_wide<T>()) {
      totals = unit_sum(totals, p.lanes);
    } else {
      totals.xy = unit_sum(totals.xy, p.lanes);
    }
    const rope_root root = root_of<T>(totals.x, totals.z, p);
    const float product_sum = root.scale == p.scale ? totals.y : totals.w;
    const float mean = product_sum * root.rstd / float(p.columns);  // of x_hat times its gradient
#pragma clang loop unroll(full)
    for (uint i = 0; i < quads; ++i) {
      const rope_quad x_hat = product(product(x[i], root.scale), root.rstd);
      if (has_grad_weights) {
        of_weight[i].a = fma(g[i].a, x_hat.a, of_weight[i].a);
        of_weight[i].b = fma(g[i].b, x_hat.b, of_weight[i].b);
      }
      if (has_grad_x) {
        device T* row_out = (has_k_grad_x && of_k ? k_out : q_out) + unit.at(h, p);
        const rope_quad of_x_hat = product(g[i], columns[i].weight);
        const rope_quad rest = {of_x_hat.a - x_hat.a * mean, of_x_hat.b - x_hat.b * mean};
        columns[i].columns.store(row_out, product(product(rest, root.rstd), root.scale));
      }
    }
  }
  const ulong part = ulong(group.y) * rope_grid_width + group.x;
  if (!has_grad_weights || part >= ulong(p.parts[0]) + p.parts[1]) {
    return;  // the whole threadgroup
  }
#pragma clang loop unroll(full)
  for (uint i = 0; i < quads; ++i) {
    for (uint step = p.lanes; step < 32; step *= 2) {  // the units of a simdgroup
      of_weight[i].a += simd_shuffle_xor(of_weight[i].a, ushort(step));
      of_weight[i].b += simd_shuffle_xor(of_weight[i].b, ushort(step));
    }
    sums[simdgroup][0][lane] = of_weight[i].a;
    sums[simdgroup][1][lane] = of_weight[i].b;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes sums
    if (thread_index < p.lanes) {
      rope_quad total = {float4(0.0f), float4(0.0f)};
      for (uint s = 0; s < rope_threads / 32; ++s) {
        total.a += sums[s][0][lane];
        total.b += sums[s][1][lane];
      }
      columns_of(lane + i * p.lanes, p).store(partials + part * p.columns, total);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // sums have been read
  }
}

// rope_norm_weights: the partial sums of the threadgroups become gradients of the weights. Lanes are columns; the
// simdgroups divide the parts among them.
//
// Grid: x threadgroups of rope_weight_columns columns, y of q and of k. Threadgroup: (32 * rope_weight_simdgroups).
// Threadgroup bytes: 2048. Necessary: the partial sums read once, the gradients written once. One barrier.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(32 * rope_weight_simdgroups)]] void rope_norm_weights(
    const device float* partials [[buffer(rope_buffer_partials)]], device T* of_q [[buffer(rope_buffer_grad_q_weight)]],
    device T* of_k [[buffer(rope_buffer_grad_k_weight), function_constant(has_k)]],
    constant rope_weights_params& p [[buffer(rope_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float sums[rope_weight_simdgroups][rope_weight_columns];
  const uint column = group.x * rope_weight_columns + lane;
  const bool of_second = has_k && group.y == 1;
  const ulong first = of_second ? p.parts[0] : 0, parts = p.parts[of_second ? 1 : 0];
  float sum = 0.0f;
  if (column < p.columns) {
    for (ulong part = simdgroup; part < parts; part += rope_weight_simdgroups) {
      sum += partials[(first + part) * p.columns + column];
    }
  }
  sums[simdgroup][lane] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes sums
  if (simdgroup == 0 && column < p.columns) {
    for (uint s = 1; s < rope_weight_simdgroups; ++s) {
      sum += sums[s][lane];
    }
    (of_second ? of_k : of_q)[column] = T(sum);
  }
}

#define INSTANTIATE_ROWS(dtype, T, columns, quads)                          \
  template [[host_name("rope_norm_rows_" #dtype "_d" #columns)]] [[kernel]] \
  decltype(rope_norm_rows<T, quads>) rope_norm_rows<T, quads>;
ROPE_NORM_ROWS_VARIANTS(INSTANTIATE_ROWS)

#define INSTANTIATE_BACKWARD(dtype, T, columns, quads)                          \
  template [[host_name("rope_norm_backward_" #dtype "_d" #columns)]] [[kernel]] \
  decltype(rope_norm_backward<T, quads>) rope_norm_backward<T, quads>;
ROPE_NORM_BACKWARD_VARIANTS(INSTANTIATE_BACKWARD)

#define INSTANTIATE_WEIGHTS(dtype, T)                            \
  template [[host_name("rope_norm_weights_" #dtype)]] [[kernel]] \
  decltype(rope_norm_weights<T>) rope_norm_weights<T>;
ROPE_NORM_WEIGHTS_VARIANTS(INSTANTIATE_WEIGHTS)
