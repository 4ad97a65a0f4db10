// Cross entropy of each row of logits x and its target t, in fp32:
//   (1 - smoothing) (lse - x[t]) + smoothing (lse - mean of x) + z lse^2, lse = log of the sum of exp(x),
// where a soft cap first turns x into cap * tanh(x / cap); and its gradient, which needs lse alone of the row.
// Label smoothing: Szegedy et al., 2016; z-loss: PaLM (Chowdhery et al., 2022).

#include <metal_stdlib>

#include "common/online.h"
#include "common/pack.h"
#include "common/reductions.h"
#include "loss_params.h"
#include "loss_variants.h"

using namespace metal;
using namespace mpsk;

constant bool targets_i64 [[function_constant(loss_constant_targets_i64)]];
constant bool writes_loss [[function_constant(loss_constant_loss)]];
constant bool writes_gradient [[function_constant(loss_constant_gradient)]];
constant bool in_place [[function_constant(loss_constant_in_place)]];
constant bool has_scale [[function_constant(loss_constant_scale)]];
constant bool has_upstream [[function_constant(loss_constant_upstream)]];
constant bool capped [[function_constant(loss_constant_soft_cap)]];
constant bool packs [[function_constant(loss_constant_packs)]];
constant bool held [[function_constant(loss_constant_held)]];
constant bool targets_i32 = !targets_i64;
constant bool separate = !in_place;

// The offset of a row in an operand.
inline long row_offset(uint row, uint operand, constant loss_params& p) {
  long at = 0;
  for (uint d = 0; d + 1 < p.dims; ++d) {
    at += long(row % p.sizes[d]) * p.strides[operand][d];
    row /= p.sizes[d];
  }
  return at + long(row) * p.strides[operand][p.dims - 1];
}

// What all lanes want to know, read by one.
inline float read_once(const device float* from, uint lane) { return simd_broadcast_first(lane == 0 ? *from : 0.0f); }
inline long read_once(const device int* from, uint lane) { return long(simd_broadcast_first(lane == 0 ? *from : 0)); }
inline long read_once(const device long* from, uint lane) {
  return as_type<long>(simd_broadcast_first(lane == 0 ? as_type<uint2>(*from) : uint2(0)));
}

inline float cap(float x, constant loss_params& p) { return capped ? p.soft_cap * precise::tanh(x / p.soft_cap) : x; }

// The class of element i of a thread's chunk: with `packs` adjacent ones, without so that neighbouring threads take
// neighbouring classes.
template <uint size>
inline uint class_at(uint chunk, uint i, uint thread_index, uint threads) {
  return packs ? (chunk * threads + thread_index) * size + i : (chunk * size + i) * threads + thread_index;
}

// Logits as they are; undefined past the end.
template <typename T>
inline pack<T> load_logits(const device T* x, uint chunk, uint thread_index, uint threads, constant loss_params& p) {
  constexpr uint size = pack_size<T>();
  pack<T> values;
  if (packs) {
    const uint first = class_at<size>(chunk, 0, thread_index, threads);
    if (first < p.classes) {
      values = load_pack(x + first);
    }
  } else {
    for (uint i = 0; i < size; ++i) {
      const uint c = class_at<size>(chunk, i, thread_index, threads);
      if (c < p.classes) {
        values.values[i] = float(x[c * p.class_stride]);
      }
    }
  }
  return values;
}

// Capped; lowest_score, which has no part in the sum, past the end.
template <typename T>
inline pack<T> scores_of(pack<T> logits, uint chunk, uint thread_index, uint threads, constant loss_params& p) {
  constexpr uint size = pack_size<T>();
  for (uint i = 0; i < size; ++i) {
    const bool exists = class_at<size>(chunk, i, thread_index, threads) < p.classes;
    logits.values[i] = exists ? cap(logits.values[i], p) : lowest_score;
  }
  return logits;
}

// A thread's logits of a row, in their dtype, between the passes.
template <typename T>
struct held_logits {
  T values[loss_held_chunks][pack_size<T>()];

  void put(uint chunk, pack<T> logits) {
    for (uint i = 0; i < pack_size<T>(); ++i) {
      values[chunk][i] = T(logits.values[i]);
    }
  }
  pack<T> get(uint chunk) const {
    pack<T> logits;
    for (uint i = 0; i < pack_size<T>(); ++i) {
      logits.values[i] = float(values[chunk][i]);
    }
    return logits;
  }
};

// The first pass over a chunk: the sum of exponentials, and that of the logits.
template <typename T>
inline void add_chunk(pack<T> logits, uint chunk, uint thread_index, uint threads, thread online& sum,
                      thread float& total, constant loss_params& p) {
  constexpr uint size = pack_size<T>();
  const pack<T> scores = scores_of(logits, chunk, thread_index, threads, p);
  float highest = sum.max;
  for (uint i = 0; i < size; ++i) {
    highest = max(highest, scores.values[i]);
    total += class_at<size>(chunk, i, thread_index, threads) < p.classes ? scores.values[i] : 0.0f;
  }
  sum.raise(highest);
  for (uint i = 0; i < size; ++i) {
    sum.sum += sum.part(scores.values[i]);
  }
}

// What the gradient of a row is made of.
struct loss_row {
  long target;
  bool ignored;
  bool valid;
  float log_sum;
  float factor;
};

// The second pass over a chunk: its gradient, written to the row at `to`.
template <typename T>
inline void write_gradient_of(pack<T> logits, uint chunk, uint thread_index, uint threads, loss_row row, device T* to,
                              constant loss_params& p) {
  constexpr uint size = pack_size<T>();
  const float of_sum = 1.0f + 2.0f * p.z_loss * row.log_sum;
  const float of_each = p.label_smoothing / float(p.all_classes), of_target = 1.0f - p.label_smoothing;
  pack<T> values = scores_of(logits, chunk, thread_index, threads, p);
  for (uint i = 0; i < size; ++i) {
    const float score = values.values[i];
    const uint c = class_at<size>(chunk, i, thread_index, threads);
    float g = online::part_of(score, row.log_sum) * of_sum - of_each;
    if (long(p.first_class) + c == row.target) {
      g -= of_target;
    }
    if (capped) {
      const float t = score / p.soft_cap;
      g *= 1.0f - t * t;
    }
    values.values[i] = row.ignored ? 0.0f : row.valid ? g * row.factor : as_type<float>(0x7fc00000u);
  }
  const uint first = class_at<size>(chunk, 0, thread_index, threads);
  if (packs) {
    if (first < p.classes) {
      store_pack(to + first, values);
    }
  } else {
    for (uint i = 0; i < size; ++i) {
      const uint c = class_at<size>(chunk, i, thread_index, threads);
      if (c < p.classes) {
        to[c] = T(values.values[i]);
      }
    }
  }
}

// cross_entropy_rows: simdgroups_per_row simdgroups take a row; a first pass for loss and lse, a second for the
// gradient.
//
// Grid: x and y together number the threadgroups, of rows_per_threadgroup rows each.
// Threadgroup: (32 * simdgroups_per_row * rows_per_threadgroup). Threadgroup bytes: 384.
// Necessary: the logits read once for either pass, the gradient written once. What the kernel adds:
// - with both passes, rows of more than loss_row_threads * loss_held_chunks packs (32768 classes in float, 65536 in
// half)
//   are read again, from cache as far as the rows under way fit there. Shorter ones, `held`, stay in registers between
//   the passes, in their dtype: at most 32 of the 52 that 1024 threads leave;
// - the logit of the target is read once more; up to two barriers for a row of the first pass that has more
//   than one simdgroup.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(loss_row_threads)]] void cross_entropy_rows(
    const device T* logits [[buffer(loss_buffer_logits), function_constant(separate)]],
    const device int* i32 [[buffer(loss_buffer_targets_i32), function_constant(targets_i32)]],
    const device long* i64 [[buffer(loss_buffer_targets_i64), function_constant(targets_i64)]],
    device float* loss [[buffer(loss_buffer_loss), function_constant(writes_loss)]],
    device float* lse [[buffer(loss_buffer_lse)]],
    const device float* scale [[buffer(loss_buffer_scale), function_constant(has_scale)]],
    const device float* upstream [[buffer(loss_buffer_upstream), function_constant(has_upstream)]],
    device T* gradient [[buffer(loss_buffer_gradient), function_constant(writes_gradient)]],
    constant loss_params& p [[buffer(loss_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr uint size = pack_size<T>();
  threadgroup float2 partial[loss_row_threads / 32];
  threadgroup float partial_sum[loss_row_threads / 32];
  const uint simdgroups = p.simdgroups_per_row, threads = simdgroups * 32;
  const uint row_in_group = simdgroup / simdgroups, first_simdgroup = row_in_group * simdgroups;
  const uint thread_index = (simdgroup - first_simdgroup) * 32 + lane;  // in the row
  const ulong at = (ulong(group.y) * loss_grid_width + group.x) * p.rows_per_threadgroup + row_in_group;
  const bool exists = at < p.rows;  // false for the last rows of the last threadgroup, which must reach the barriers
  const uint row = exists ? uint(at) : 0;
  const long targets_at = row_offset(row, loss_operand_targets, p);
  const long target = targets_i64 ? read_once(i64 + targets_at, lane) : read_once(i32 + targets_at, lane);
  const bool ignored = target == p.ignore_index;
  const bool valid = target >= 0 && target < long(p.all_classes);
  device T* of_row = writes_gradient ? gradient + ulong(row) * p.classes : gradient;
  const device T* x = separate ? logits + row_offset(row, loss_operand_logits, p) : of_row;
  const uint chunks = exists ? (p.classes - 1) / (threads * size) + 1 : 0;
  const float nan = as_type<float>(0x7fc00000u);

  held_logits<T> kept;
  float log_sum;
  if (writes_loss) {
    float target_logit = 0.0f;
    if (thread_index == 0 && exists && valid && !ignored) {
      target_logit = cap(float(x[target * p.class_stride]), p);
    }
    online sum;
    float total = 0.0f;  // of the logits
    if (held) {
#pragma clang loop unroll(full)
      for (uint chunk = 0; chunk < loss_held_chunks; ++chunk) {
        if (chunk < chunks) {
          const pack<T> read = load_logits(x, chunk, thread_index, threads, p);
          kept.put(chunk, read);
          add_chunk(read, chunk, thread_index, threads, sum, total, p);
        }
      }
    } else {
      for (uint chunk = 0; chunk < chunks; ++chunk) {
        add_chunk(load_logits(x, chunk, thread_index, threads, p), chunk, thread_index, threads, sum, total, p);
      }
    }
    sum = simdgroups_online(sum, first_simdgroup, simdgroups, lane, simdgroup, partial);
    if (p.label_smoothing != 0.0f) {
      total = simdgroups_sum(total, first_simdgroup, simdgroups, lane, simdgroup, partial_sum);
    }
    const float log_of_sum = precise::log(sum.sum);
    log_sum = sum.max + log_of_sum;
    if (thread_index == 0 && exists) {
      // lse - x[t] by way of max: the two largest terms cancel.
      float value = log_of_sum + (sum.max - target_logit);
      if (p.label_smoothing != 0.0f) {
        const float mean = total / float(p.all_classes);
        value = (1.0f - p.label_smoothing) * value + p.label_smoothing * (log_of_sum + (sum.max - mean));
      }
      if (p.z_loss != 0.0f) {
        value += p.z_loss * log_sum * log_sum;
      }
      loss[row] = ignored ? 0.0f : valid ? value : nan;
      lse[row] = log_sum;
    }
  } else {
    log_sum = read_once(lse + row, lane);
  }

  if (writes_gradient) {
    float factor = has_scale ? read_once(scale, lane) : 1.0f;
    if (has_upstream) {
      factor *= read_once(upstream + row_offset(row, loss_operand_upstream, p), lane);
    }
    if (in_place) {
      threadgroup_barrier(mem_flags::mem_device);  // the logit of the target has been read
    }
    const loss_row of_this = {target, ignored, valid, log_sum, factor};
    if (held) {
#pragma clang loop unroll(full)
      for (uint chunk = 0; chunk < loss_held_chunks; ++chunk) {
        if (chunk < chunks) {
          write_gradient_of(kept.get(chunk), chunk, thread_index, threads, of_this, of_row, p);
        }
      }
    } else {
      for (uint chunk = 0; chunk < chunks; ++chunk) {
        const pack<T> read = load_logits(x, chunk, thread_index, threads, p);
        write_gradient_of(read, chunk, thread_index, threads, of_this, of_row, p);
      }
    }
  }
}

// cross_entropy_count: scale = 1 / the count of targets that are not ignored; NaN where there is none, as in torch.
//
// Grid: one threadgroup of loss_reduce_threads, so that the order of the sum is fixed. Threadgroup bytes: 128.
// Necessary: the targets read once.
template <typename Target>
[[kernel, max_total_threads_per_threadgroup(loss_reduce_threads)]] void cross_entropy_count(
    const device Target* targets [[buffer(loss_buffer_targets_i32)]], device float* scale [[buffer(loss_buffer_scale)]],
    constant loss_params& p [[buffer(loss_buffer_params)]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup uint partial[loss_reduce_threads / 32];
  uint count = 0;
  for (ulong row = thread_index; row < p.rows; row += loss_reduce_threads) {
    count += long(targets[row_offset(uint(row), loss_operand_targets, p)]) != p.ignore_index;
  }
  count = simd_sum(count);
  if (lane == 0) {
    partial[simdgroup] = count;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes partial
  count = simd_sum(partial[lane]);
  if (thread_index == 0) {
    scale[0] = count == 0 ? as_type<float>(0x7fc00000u) : 1.0f / float(count);
  }
}

// cross_entropy_sum: loss = scale * the sum of the rows' losses, which `lse` names here.
//
// Grid, threadgroup: as cross_entropy_count. Necessary: the rows' losses read once.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(loss_reduce_threads)]] void cross_entropy_sum(
    const device T* rows [[buffer(loss_buffer_lse)]], device float* loss [[buffer(loss_buffer_loss)]],
    const device float* scale [[buffer(loss_buffer_scale), function_constant(has_scale)]],
    constant loss_params& p [[buffer(loss_buffer_params)]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float partial[loss_reduce_threads / 32];
  float sum = 0.0f;
  for (ulong row = thread_index; row < p.rows; row += loss_reduce_threads) {
    sum += rows[row];
  }
  sum = simdgroups_sum(sum, 0, loss_reduce_threads / 32, lane, simdgroup, partial);
  if (thread_index == 0) {
    loss[0] = has_scale ? sum * scale[0] : sum;
  }
}

// loss_copy: puts a block of a gradient, whose matrix product is complete, where it belongs.
//
// Grid: threads along x of 16 bytes each, or with tails of one element. Threadgroup: (loss_reduce_threads).
// Necessary: nothing of it, but for that a matrix product makes its own result.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(loss_reduce_threads)]] void loss_copy(
    const device T* block [[buffer(loss_buffer_logits)]], device T* gradient [[buffer(loss_buffer_gradient)]],
    constant loss_copy_params& p [[buffer(loss_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  constexpr uint size = pack_size<T>();
  const ulong at = (ulong(group.y) * loss_grid_width + group.x) * loss_reduce_threads + thread_index;
  device T* to = gradient + p.offset;
  if (packs) {
    if (at * size < p.count) {
      store_pack(to + at * size, load_pack(block + at * size));
    }
  } else if (at < p.count) {
    to[at] = block[at];
  }
}

#define INSTANTIATE_ROWS(dtype, T)                                \
  template [[host_name("cross_entropy_rows_" #dtype)]] [[kernel]] \
  decltype(cross_entropy_rows<T>) cross_entropy_rows<T>;
CROSS_ENTROPY_ROWS_VARIANTS(INSTANTIATE_ROWS)

#define INSTANTIATE_COUNT(dtype, T)                                \
  template [[host_name("cross_entropy_count_" #dtype)]] [[kernel]] \
  decltype(cross_entropy_count<T>) cross_entropy_count<T>;
CROSS_ENTROPY_COUNT_VARIANTS(INSTANTIATE_COUNT)

#define INSTANTIATE_SUM(dtype, T)                                \
  template [[host_name("cross_entropy_sum_" #dtype)]] [[kernel]] \
  decltype(cross_entropy_sum<T>) cross_entropy_sum<T>;
CROSS_ENTROPY_SUM_VARIANTS(INSTANTIATE_SUM)

#define INSTANTIATE_COPY(dtype, T) \
  template [[host_name("loss_copy_" #dtype)]] [[kernel]] decltype(loss_copy<T>) loss_copy<T>;
LOSS_COPY_VARIANTS(INSTANTIATE_COPY)
