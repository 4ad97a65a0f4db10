// out[i] = sum over j of softmax(scale * q[i] . k[j])_j * v[j], for every batch and head, without the matrix of scores.

#include <metal_stdlib>

#include "attention_params.h"
#include "attention_variants.h"
#include "common/fragment.h"
#include "common/tile.h"

using namespace metal;
using namespace mpsk;

constant bool causal [[function_constant(attention_constant_causal)]];
constant bool vectors [[function_constant(attention_constant_vectors)]];

// Finite stand-ins for minus infinity, which fast math may not see. Scores of up to 2e38, 1.45e38 in the kernel's
// units, lie above the maximum that a row starts from, and that so far above a hidden score that its exponential is 0
// even where the row has seen nothing else. No two of all these are further apart than a float can tell.
constant constexpr float no_maximum = -1.5e38f;
constant constexpr float hidden_score = -1.9e38f;

// 4^x. exp2(2 * x) would pass through infinity where two scores are very far apart.
static float exp4(float x) {
  const float root = exp2(x);
  return root * root;
}

// attention_flash: online softmax. A threadgroup of 4 simdgroups takes 32 queries of a head, 8 for each simdgroup, and
// walks over blocks of bk keys. With m the maximum and l the sum of a row so far, in fp32 and in units of log4:
//   s = scale_log4 q.k;  m' = max(m, s);  p = 4^(s - m');  l' = l 4^(m - m') + sum p;  o' = o 4^(m - m') + p v
// and out = o / l at the end, rounded once. A row that sees no key gives zeros. Query heads share key heads by index.
//
// Grid: x: blocks of queries; y: query heads; z: batch. Threadgroup: (32, 4, 1).
//
// Threadgroup bytes: 2 bk (d sizeof(T) + 16), a block of keys and one of values; the queries pass through the same
// bytes first. At most 25600 (f32 d96); f16: 9216 at d64 and 8704 at d128, 6 threadgroups in the 60 KB of a core.
//
// Necessary: 4 d FLOP for each score (causal: those on and below the diagonal); q, k, v read once, out written once.
// What the kernel adds:
// - every block of queries reads the k and v that it sees, sizeof(T) / 16 bytes for each score and d, most from cache;
// - blocks at an edge multiply the zeros that fill them up;
// - blocks that the diagonal crosses are computed in full; those above it are not touched;
// - a block of keys costs two barriers, and each fragment multiplication one fragment load, of k or of v;
// - a lane computes 2 exponentials for 8x8 scores, and for each block of keys 2 shuffles and d / 4 products with o.
//
// Queries stay in registers, d / 4 elements a lane: to reload them would take 32 rows of threadgroup memory and one
// more fragment load for every 2 bk / 8 multiplications.
//
// Row statistics come from registers too: a lane holds two elements of one row of each fragment and 4 lanes share a
// row, so a maximum takes 2 shuffles, where a trip through threadgroup memory would move 4 bk bytes a row each way.
// The sum is kept for each lane and takes its 2 shuffles once, at the end.
//
// Keys lie in threadgroup memory as they do in device memory and turn as fragments are loaded. To turn them on the way
// in would replace each 16-byte store by 4 or 8 single ones, to save as many loads of pairs. Unmeasured.
template <typename T, int d, int bk>
[[kernel, max_total_threads_per_threadgroup(128)]] void attention_flash(
    const device T* q [[buffer(attention_buffer_q)]], const device T* k [[buffer(attention_buffer_k)]],
    const device T* v [[buffer(attention_buffer_v)]], device T* out [[buffer(attention_buffer_out)]],
    constant attention_params& p [[buffer(attention_buffer_params)]], uint3 group [[threadgroup_position_in_grid]],
    uint3 groups [[threadgroups_per_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simd_index [[simdgroup_index_in_threadgroup]]) {
  constexpr int threads = 128;
  constexpr int bq = attention_block_q;
  constexpr int key_frags = bk / frag_size;   // fragments of a block, along its keys
  constexpr int depth_frags = d / frag_size;  // and along the head dimension
  constexpr int pitch = tile_pitch<T>(d);
  constexpr int tile_size = tile_vectors<T>(bk, d);
  static_assert(bq <= 2 * bk, "the queries pass through the tiles of keys and values");
  threadgroup uint4 tiles[2 * tile_size];
  threadgroup uint4* k_tile = tiles;
  threadgroup uint4* v_tile = tiles + tile_size;
  const threadgroup T* keys = (const threadgroup T*)k_tile;
  const threadgroup T* values = (const threadgroup T*)v_tile;

  const ulong first_query = ulong(group.x) * bq;
  const ulong query_count = p.q_length - first_query;
  const uint k_head = group.y / p.q_heads_per_k_head;
  q += group.z * p.q.batch + group.y * p.q.head + long(first_query) * p.q.row;
  k += group.z * p.k.batch + k_head * p.k.head;
  v += group.z * p.v.batch + k_head * p.v.head;
  out += ((ulong(group.z) * groups.y + group.y) * p.q_length + first_query) * d;

  load_tile<T, bq, d, threads>(tiles, q, p.q.row, p.q.column, query_count, d, vectors, thread_index);
  threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes the queries
  const int row = int(simd_index) * frag_size;      // of this simdgroup in the block of queries
  frag<T> queries[depth_frags];
  frag<float> sums[depth_frags];
#pragma clang loop unroll(full)
  for (int i = 0; i < depth_frags; ++i) {
    load_frag(queries[i], keys + row * pitch + i * frag_size, pitch, false);
    sums[i] = make_filled_simdgroup_matrix<float, frag_size>(0.0f);
  }
  const frag_position at = position_in_frag(ushort(lane));
  const ulong query = first_query + ulong(row + at.row);  // of this lane
  float maximum = no_maximum;
  float total = 0.0f;  // of this lane's columns

  const ulong key_count = causal ? min(p.k_length, first_query + bq) : p.k_length;
  for (ulong key = 0; key < key_count; key += bk) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the queries, then the previous keys and values, have been read
    load_tile<T, bk, d, threads>(k_tile, k, p.k.row, p.k.column, p.k_length - key, d, vectors, thread_index);
    load_tile<T, bk, d, threads>(v_tile, v, p.v.row, p.v.column, p.k_length - key, d, vectors, thread_index);
    k += bk * p.k.row;
    v += bk * p.v.row;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes keys and values

    frag<float> scores[key_frags];
#pragma clang loop unroll(full)
    for (int j = 0; j < key_frags; ++j) {
      scores[j] = make_filled_simdgroup_matrix<float, frag_size>(0.0f);
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < depth_frags; ++i) {
#pragma clang loop unroll(full)
      for (int j = 0; j < key_frags; ++j) {
        frag<T> right;
        load_frag(right, keys + j * frag_size * pitch + i * frag_size, pitch, true);
        simdgroup_multiply_accumulate(scores[j], queries[i], right, scores[j]);
      }
    }

    // The same for all threads: whether any score of the block is hidden.
    const bool hides = key + bk > p.k_length || (causal && key + bk > first_query + 1);
    float s[key_frags][2];
    float block_maximum = maximum;
#pragma clang loop unroll(full)
    for (int j = 0; j < key_frags; ++j) {
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        s[j][e] = scores[j].thread_elements()[e] * p.scale_log4;
        if (hides) {
          const ulong index = key + ulong(j * frag_size + at.col + e);
          s[j][e] = index < p.k_length && (!causal || index <= query) ? s[j][e] : hidden_score;
        }
        block_maximum = max(block_maximum, s[j][e]);
      }
    }
    block_maximum = row_max(block_maximum);
    const float shrink = exp4(maximum - block_maximum);
    maximum = block_maximum;
    total *= shrink;
#pragma clang loop unroll(full)
    for (int j = 0; j < key_frags; ++j) {
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const float weight = exp4(s[j][e] - maximum);
        total += weight;
        scores[j].thread_elements()[e] = weight;
      }
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < depth_frags; ++i) {
      sums[i].thread_elements()[0] *= shrink;
      sums[i].thread_elements()[1] *= shrink;
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < key_frags; ++j) {
#pragma clang loop unroll(full)
      for (int i = 0; i < depth_frags; ++i) {
        frag<T> right;
        load_frag(right, values + j * frag_size * pitch + i * frag_size, pitch, false);
        simdgroup_multiply_accumulate(sums[i], scores[j], right, sums[i]);
      }
    }
  }

  total = row_sum(total);
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;
#pragma clang loop unroll(full)
  for (int i = 0; i < depth_frags; ++i) {
    const float first = sums[i].thread_elements()[0] * inverse;
    const float second = sums[i].thread_elements()[1] * inverse;
    if (query < p.q_length) {
      device T* to = out + (row + at.row) * d + i * frag_size + at.col;
      to[0] = T(first);
      to[1] = T(second);
    }
  }
}

#define INSTANTIATE(dtype, T, d, bk)                                             \
  template [[host_name("attention_flash_" #dtype "_d" #d "_bk" #bk)]] [[kernel]] \
  decltype(attention_flash<T, d, bk>) attention_flash<T, d, bk>;
ATTENTION_FLASH_VARIANTS(INSTANTIATE)
