// Rotary position embedding: each pair of columns of a head is a point, turned by position * frequency of the pair. In
// fp32, rounded once. RoFormer: Su et al., 2021.

#include <metal_stdlib>

#include "common/pack.h"
#include "rope_rotation.h"
#include "rope_variants.h"

using namespace metal;
using namespace mpsk;

constant bool packs [[function_constant(rope_constant_packs)]];

// rope_rotate: a thread takes a chunk of columns of heads_per_thread heads at one position: a pack of pairs, a pack of
// columns that are copied, or without `packs` one of either. The rotations serve all its heads.
//
// Grid, in threads: x chunks of all positions, y groups of heads, those of q before those of k, z batches.
// Threadgroup: (up to rope_threads). Threadgroup bytes: 0.
// Necessary: q and k read once, written once; a table and the positions read once. What the kernel adds:
// - each group of heads reads the table and the positions, from cache but for the first; or computes 2 x 12 FLOP and
//   a product of 64 bits for each pair, against 6 FLOP for each pair of each head;
// - in halves of a head shorter than 128 bytes a simdgroup's access fills its lines in part; the other half follows.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(rope_threads)]] void rope_rotate(
    const device T* q [[buffer(rope_buffer_q)]], const device T* k [[buffer(rope_buffer_k), function_constant(has_k)]],
    const device T* cos_table [[buffer(rope_buffer_cos), function_constant(table)]],
    const device T* sin_table [[buffer(rope_buffer_sin), function_constant(table)]],
    const device float* cos_f32 [[buffer(rope_buffer_cos_f32), function_constant(table_f32)]],
    const device float* sin_f32 [[buffer(rope_buffer_sin_f32), function_constant(table_f32)]],
    const device int* i32 [[buffer(rope_buffer_positions_i32), function_constant(positions_i32)]],
    const device long* i64 [[buffer(rope_buffer_positions_i64), function_constant(positions_i64)]],
    device T* q_out [[buffer(rope_buffer_q_out)]],
    device T* k_out [[buffer(rope_buffer_k_out), function_constant(has_k)]],
    constant rope_params& p [[buffer(rope_buffer_params)]], uint3 thread_index [[thread_position_in_grid]]) {
  constexpr uint size = pack_size<T>();
  const uint width = packs ? size : 1;
  const uint index = thread_index.x / p.chunks, chunk = thread_index.x % p.chunks, batch = thread_index.z;
  const uint rotated = p.rotation.pairs / width;
  const uint first = thread_index.y * p.heads_per_thread, heads = p.heads[0] + p.heads[1];
  if (index >= p.length || first >= heads) {
    return;
  }

  const bool copies = chunk >= rotated;
  const uint pair = chunk * width;
  float cosines[size], sines[size];
  if (!copies) {
    const rope_table<T> entries = {cos_table, sin_table, cos_f32, sin_f32, i32, i64};
    load_rotations<T, size>(entries, p.rotation, batch, index, pair, width, cosines, sines);
  }

  // A chunk's first columns, and how far behind them its second ones lie, the other half of its pairs.
  const uint column = copies ? 2 * p.rotation.pairs + (chunk - rotated) * width : interleaved ? 2 * pair : pair;
  const uint other = interleaved ? width : p.rotation.pairs;
  const uint last = min(first + p.heads_per_thread, heads);
  for (uint h = first; h < last; ++h) {
    const uint which = h < p.heads[0] ? 0 : 1, head = h - which * p.heads[0];
    const device T* x = has_k && which == 1 ? k : q;
    device T* out = has_k && which == 1 ? k_out : q_out;
    x += long(batch) * p.strides[which][0] + long(head) * p.strides[which][1] + long(index) * p.strides[which][2];
    out += ((ulong(batch) * p.heads[which] + head) * p.length + index) * p.columns + column;
    if (packs) {
      x += column;
      pack<T> a = load_pack(x);
      if (!copies) {
        pack<T> b = load_pack(x + other);
        if (interleaved) {
          for (uint i = 0; i < size / 2; ++i) {
            const float a0 = a.values[2 * i], a1 = a.values[2 * i + 1];
            a.values[2 * i] = a0 * cosines[i] - a1 * sines[i];
            a.values[2 * i + 1] = a1 * cosines[i] + a0 * sines[i];
            const float b0 = b.values[2 * i], b1 = b.values[2 * i + 1];
            b.values[2 * i] = b0 * cosines[size / 2 + i] - b1 * sines[size / 2 + i];
            b.values[2 * i + 1] = b1 * cosines[size / 2 + i] + b0 * sines[size / 2 + i];
          }
        } else {
          for (uint i = 0; i < size; ++i) {
            const float a0 = a.values[i], b0 = b.values[i];
            a.values[i] = a0 * cosines[i] - b0 * sines[i];
            b.values[i] = b0 * cosines[i] + a0 * sines[i];
          }
        }
        store_pack(out + other, b);
      }
      store_pack(out, a);
    } else {
      const long stride = p.strides[which][3];
      const float a = float(x[column * stride]);
      if (copies) {
        *out = T(a);
      } else {
        const float b = float(x[(column + other) * stride]);
        out[0] = T(a * cosines[0] - b * sines[0]);
        out[other] = T(b * cosines[0] + a * sines[0]);
      }
    }
  }
}

#define INSTANTIATE_ROTATE(dtype, T) \
  template [[host_name("rope_rotate_" #dtype)]] [[kernel]] decltype(rope_rotate<T>) rope_rotate<T>;
ROPE_ROTATE_VARIANTS(INSTANTIATE_ROTATE)
