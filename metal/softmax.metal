// out = softmax or log_softmax over the last dimension of the scores: x * scale, capped to cap * tanh(x * scale / cap),
// plus a mask. In fp32, rounded once. And the gradient of x.

#include <metal_stdlib>

#include "common/online.h"
#include "common/pack.h"
#include "common/reductions.h"
#include "softmax_params.h"
#include "softmax_variants.h"

using namespace metal;
using namespace mpsk;

constant bool logs [[function_constant(softmax_constant_log)]];
constant bool has_mask [[function_constant(softmax_constant_mask)]];
constant bool has_mask_f32 [[function_constant(softmax_constant_mask_f32)]];
constant bool has_mask_bool [[function_constant(softmax_constant_mask_bool)]];
constant bool causal [[function_constant(softmax_constant_causal)]];
constant bool capped [[function_constant(softmax_constant_soft_cap)]];
constant bool packs [[function_constant(softmax_constant_packs)]];

// Where the threads of a row stand, and which row it is.
struct softmax_row_place {
  uint row;
  bool exists;           // false for the last rows of the last threadgroup, which must reach the barrier
  uint first_simdgroup;  // of the row
  uint threads;          // of the row
  uint thread_index;     // in the row

  softmax_row_place(uint2 group, uint lane, uint simdgroup, constant softmax_params& p) {
    const uint row_in_group = simdgroup / p.simdgroups_per_row;
    const ulong at = (ulong(group.y) * softmax_grid_width + group.x) * p.rows_per_threadgroup + row_in_group;
    exists = at < p.rows;
    row = exists ? uint(at) : 0;
    first_simdgroup = row_in_group * p.simdgroups_per_row;
    threads = p.simdgroups_per_row * 32;
    thread_index = (simdgroup - first_simdgroup) * 32 + lane;
  }

  // A chunk is a pack of columns: with `packs` adjacent ones, without `threads` apart, so that neighbouring threads
  // take neighbouring columns.
  template <uint size>
  uint column(uint chunk, uint i) const {
    return packs ? (chunk * threads + thread_index) * size + i : (chunk * size + i) * threads + thread_index;
  }

  // The offset of the row in an operand.
  long offset(uint operand, constant softmax_params& p) const {
    long at = 0;
    uint rest = row;
    for (uint d = 0; d + 1 < p.dims; ++d) {
      at += long(rest % p.sizes[d]) * p.strides[operand][d];
      rest /= p.sizes[d];
    }
    return at + long(rest) * p.strides[operand][p.dims - 1];
  }
};

// A pack of columns of a row that begins at `from`; `fill` past the end.
template <typename T>
inline pack<T> load_columns(const device T* from, long stride, softmax_row_place place, uint chunk, uint columns,
                            float fill) {
  constexpr uint size = pack_size<T>();
  const uint first = place.column<size>(chunk, 0);
  if (packs && first < columns) {
    return load_pack(from + first);
  }
  pack<T> values;
  for (uint i = 0; i < size; ++i) {
    const uint c = place.column<size>(chunk, i);
    values.values[i] = !packs && c < columns ? float(from[c * stride]) : fill;
  }
  return values;
}

template <typename T>
inline void store_columns(device T* to, softmax_row_place place, uint chunk, uint columns, pack<T> values) {
  constexpr uint size = pack_size<T>();
  const uint first = place.column<size>(chunk, 0);
  if (packs) {
    if (first < columns) {
      store_pack(to + first, values);
    }
    return;
  }
  for (uint i = 0; i < size; ++i) {
    const uint c = place.column<size>(chunk, i);
    if (c < columns) {
      to[c] = T(values.values[i]);
    }
  }
}

// The scores of one row.
template <typename T>
struct softmax_scores {
  const device T* x;
  const device T* mask;  // undefined, and not touched, unless has_mask; the same for the others
  const device float* mask_f32;
  const device bool* mask_bool;
  softmax_row_place place;

  // lowest_score for what is masked or past the end.
  pack<T> load(uint chunk, constant softmax_params& p) const {
    constexpr uint size = pack_size<T>();
    pack<T> scores = load_columns(x, p.column_strides[softmax_operand_x], place, chunk, p.columns, lowest_score);
    const uint query = causal ? place.row % p.queries : 0;
    for (uint i = 0; i < size; ++i) {
      const uint c = place.column<size>(chunk, i);
      if (c >= p.columns) {
        scores.values[i] = lowest_score;
        continue;
      }
      float score = scores.values[i] * p.scale;
      if (capped) {
        score = p.soft_cap * precise::tanh(score / p.soft_cap);
      }
      const long at = c * p.column_strides[softmax_operand_mask];
      if (has_mask) {
        score += float(mask[at]);
      }
      if (has_mask_f32) {
        score += mask_f32[at];
      }
      if (has_mask_bool && !mask_bool[at]) {
        score = lowest_score;
      }
      if (causal && c > query) {
        score = lowest_score;
      }
      scores.values[i] = masked(score) ? lowest_score : score;
    }
    return scores;
  }
};

template <typename T>
inline void add_scores(thread online& sum, pack<T> scores) {
  float highest = sum.max;
  for (uint i = 0; i < pack_size<T>(); ++i) {
    highest = max(highest, scores.values[i]);
  }
  sum.raise(highest);
  for (uint i = 0; i < pack_size<T>(); ++i) {
    sum.sum += sum.part(scores.values[i]);
  }
}

template <typename T>
inline pack<T> normalized(pack<T> scores, online row) {
  const float inverse = as_type<uint>(row.sum) == 0 ? 0.0f : 1.0f / row.sum;
  const float log_sum = logs ? precise::log(row.sum) : 0.0f;
  pack<T> result;
  for (uint i = 0; i < pack_size<T>(); ++i) {
    const float score = scores.values[i];
    if (logs) {
      result.values[i] = masked(score) ? as_type<float>(0xff800000u) : score - row.max - log_sum;
    } else {
      result.values[i] = row.part(score) * inverse;
    }
  }
  return result;
}

// softmax_row: simdgroups_per_row simdgroups share a row, of which each thread keeps `columns` in registers.
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup rows each.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 256.
// Chosen for rows of at most softmax_row_threads * columns.
// Necessary: x and the mask read once, out written once; two exponentials for each element.
// What the kernel adds: a mask that rows share is read again for each, from cache; one barrier for each row of more
// than one simdgroup.
template <typename T, uint columns>
[[kernel, max_total_threads_per_threadgroup(softmax_row_threads)]] void softmax_row(
    const device T* x [[buffer(softmax_buffer_x)]],
    const device T* mask [[buffer(softmax_buffer_mask), function_constant(has_mask)]],
    const device float* mask_f32 [[buffer(softmax_buffer_mask_f32), function_constant(has_mask_f32)]],
    const device bool* mask_bool [[buffer(softmax_buffer_mask_bool), function_constant(has_mask_bool)]],
    device T* out [[buffer(softmax_buffer_out)]], constant softmax_params& p [[buffer(softmax_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint chunks = columns / pack_size<T>();
  threadgroup float2 partial[32];
  const softmax_row_place place(group, lane, simdgroup, p);
  const long x_at = place.offset(softmax_operand_x, p), mask_at = place.offset(softmax_operand_mask, p);
  const softmax_scores<T> row = {x + x_at, has_mask ? mask + mask_at : mask,
                                 has_mask_f32 ? mask_f32 + mask_at : mask_f32,
                                 has_mask_bool ? mask_bool + mask_at : mask_bool, place};
  pack<T> scores[chunks];
  online sum;
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    scores[chunk] = row.load(chunk, p);
    add_scores<T>(sum, scores[chunk]);
  }
  sum = simdgroups_online(sum, place.first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial);
  device T* to = out + ulong(place.row) * p.columns;
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    store_columns(to, place, chunk, place.exists ? p.columns : 0, normalized(scores[chunk], sum));
  }
}

// softmax_loop: a threadgroup walks over its row twice.
//
// Grid, threadgroup: as above, of one row. Chosen for rows that fit no row kernel.
// Necessary: as above. What the kernel adds: x and the mask are read twice, the second time from cache as far as the
// rows under way fit there.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(softmax_row_threads)]] void softmax_loop(
    const device T* x [[buffer(softmax_buffer_x)]],
    const device T* mask [[buffer(softmax_buffer_mask), function_constant(has_mask)]],
    const device float* mask_f32 [[buffer(softmax_buffer_mask_f32), function_constant(has_mask_f32)]],
    const device bool* mask_bool [[buffer(softmax_buffer_mask_bool), function_constant(has_mask_bool)]],
    device T* out [[buffer(softmax_buffer_out)]], constant softmax_params& p [[buffer(softmax_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float2 partial[32];
  const softmax_row_place place(group, lane, simdgroup, p);
  const long x_at = place.offset(softmax_operand_x, p), mask_at = place.offset(softmax_operand_mask, p);
  const softmax_scores<T> row = {x + x_at, has_mask ? mask + mask_at : mask,
                                 has_mask_f32 ? mask_f32 + mask_at : mask_f32,
                                 has_mask_bool ? mask_bool + mask_at : mask_bool, place};
  const uint chunks = (p.columns - 1) / (place.threads * pack_size<T>()) + 1;
  online sum;
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    add_scores<T>(sum, row.load(chunk, p));
  }
  sum = simdgroups_online(sum, place.first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial);
  device T* to = out + ulong(place.row) * p.columns;
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    store_columns(to, place, chunk, place.exists ? p.columns : 0, normalized(row.load(chunk, p), sum));
  }
}

// What the backward kernels read of a row: out and its gradient, and x where the slope of the soft cap needs it.
template <typename T>
struct softmax_gradients {
  const device T* out;
  const device T* gradient;
  const device T* x;  // undefined, and not touched, unless capped
  softmax_row_place place;

  pack<T> load_out(uint chunk, constant softmax_params& p) const {
    return load_columns(out, p.column_strides[softmax_operand_x], place, chunk, p.columns, lowest_score);
  }
  pack<T> load_gradient(uint chunk, constant softmax_params& p) const {
    return load_columns(gradient, p.column_strides[softmax_operand_gradient], place, chunk, p.columns, 0.0f);
  }

  // What out and gradient add to the sum over the row. Past the end, gradient is 0.
  static float part(pack<T> y, pack<T> g) {
    float sum = 0.0f;
    for (uint i = 0; i < pack_size<T>(); ++i) {
      if (logs) {
        sum += masked(y.values[i]) ? 0.0f : g.values[i];
      } else {
        sum += masked(y.values[i]) ? 0.0f : y.values[i] * g.values[i];
      }
    }
    return sum;
  }

  pack<T> of_x(uint chunk, pack<T> y, pack<T> g, float sum, constant softmax_params& p) const {
    constexpr uint size = pack_size<T>();
    pack<T> result;
    for (uint i = 0; i < size; ++i) {
      const float of_score = logs ? g.values[i] - precise::exp(y.values[i]) * sum : y.values[i] * (g.values[i] - sum);
      result.values[i] = masked(y.values[i]) ? 0.0f : of_score * p.scale;
    }
    if (capped) {
      const pack<T> inputs = load_columns(x, p.column_strides[softmax_operand_mask], place, chunk, p.columns, 0.0f);
      for (uint i = 0; i < size; ++i) {
        const float t = precise::tanh(inputs.values[i] * p.scale / p.soft_cap);
        result.values[i] *= 1.0f - t * t;
      }
    }
    return result;
  }
};

// softmax_backward_row: x_gradient = scale * out * (gradient - sum of out * gradient); of log_softmax
// scale * (gradient - exp(out) * sum of gradient).
//
// Grid, threadgroup: as softmax_row; threadgroup bytes: 128. Chosen for: the backward pass of the same rows.
// Necessary: out and its gradient read once, x_gradient written once; with a soft cap x read once.
// What the kernel adds: one barrier for each row of more than one simdgroup.
template <typename T, uint columns>
[[kernel, max_total_threads_per_threadgroup(softmax_row_threads)]] void softmax_backward_row(
    const device T* x [[buffer(softmax_buffer_x), function_constant(capped)]],
    const device T* out [[buffer(softmax_buffer_out)]], const device T* gradient [[buffer(softmax_buffer_gradient)]],
    device T* x_gradient [[buffer(softmax_buffer_x_gradient)]],
    constant softmax_params& p [[buffer(softmax_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint chunks = columns / pack_size<T>();
  threadgroup float partial[32];
  const softmax_row_place place(group, lane, simdgroup, p);
  const softmax_gradients<T> row = {out + place.offset(softmax_operand_x, p),
                                    gradient + place.offset(softmax_operand_gradient, p),
                                    capped ? x + place.offset(softmax_operand_mask, p) : x, place};
  pack<T> y[chunks], g[chunks];
  float sum = 0.0f;
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    y[chunk] = row.load_out(chunk, p);
    g[chunk] = row.load_gradient(chunk, p);
    sum += row.part(y[chunk], g[chunk]);
  }
  sum = simdgroups_sum(sum, place.first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial);
  device T* to = x_gradient + ulong(place.row) * p.columns;
#pragma clang loop unroll(full)
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    store_columns(to, place, chunk, place.exists ? p.columns : 0, row.of_x(chunk, y[chunk], g[chunk], sum, p));
  }
}

// softmax_backward_loop: the same in two walks over the row, for rows that fit no row kernel.
//
// What the kernel adds: out and its gradient are read twice, the second time from cache as far as they fit there.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(softmax_row_threads)]] void softmax_backward_loop(
    const device T* x [[buffer(softmax_buffer_x), function_constant(capped)]],
    const device T* out [[buffer(softmax_buffer_out)]], const device T* gradient [[buffer(softmax_buffer_gradient)]],
    device T* x_gradient [[buffer(softmax_buffer_x_gradient)]],
    constant softmax_params& p [[buffer(softmax_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[32];
  const softmax_row_place place(group, lane, simdgroup, p);
  const softmax_gradients<T> row = {out + place.offset(softmax_operand_x, p),
                                    gradient + place.offset(softmax_operand_gradient, p),
                                    capped ? x + place.offset(softmax_operand_mask, p) : x, place};
  const uint chunks = (p.columns - 1) / (place.threads * pack_size<T>()) + 1;
  float sum = 0.0f;
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    sum += row.part(row.load_out(chunk, p), row.load_gradient(chunk, p));
  }
  sum = simdgroups_sum(sum, place.first_simdgroup, p.simdgroups_per_row, lane, simdgroup, partial);
  device T* to = x_gradient + ulong(place.row) * p.columns;
  for (uint chunk = 0; chunk < chunks; ++chunk) {
    const pack<T> of_x = row.of_x(chunk, row.load_out(chunk, p), row.load_gradient(chunk, p), sum, p);
    store_columns(to, place, chunk, place.exists ? p.columns : 0, of_x);
  }
}

#define INSTANTIATE_ROW(dtype, T, columns)                               \
  template [[host_name("softmax_row_" #dtype "_c" #columns)]] [[kernel]] \
  decltype(softmax_row<T, columns>) softmax_row<T, columns>;
SOFTMAX_ROW_VARIANTS(INSTANTIATE_ROW)

#define INSTANTIATE_LOOP(dtype, T) \
  template [[host_name("softmax_loop_" #dtype)]] [[kernel]] decltype(softmax_loop<T>) softmax_loop<T>;
SOFTMAX_LOOP_VARIANTS(INSTANTIATE_LOOP)

#define INSTANTIATE_BACKWARD_ROW(dtype, T, columns)                               \
  template [[host_name("softmax_backward_row_" #dtype "_c" #columns)]] [[kernel]] \
  decltype(softmax_backward_row<T, columns>) softmax_backward_row<T, columns>;
SOFTMAX_BACKWARD_ROW_VARIANTS(INSTANTIATE_BACKWARD_ROW)

#define INSTANTIATE_BACKWARD_LOOP(dtype, T)                          \
  template [[host_name("softmax_backward_loop_" #dtype)]] [[kernel]] \
  decltype(softmax_backward_loop<T>) softmax_backward_loop<T>;
SOFTMAX_BACKWARD_LOOP_VARIANTS(INSTANTIATE_BACKWARD_LOOP)
