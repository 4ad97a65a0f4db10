// out[z, m, n] = sum over k of a[z, m, k] * b[z, k, n], accumulated in fp32, finished by the epilogue, rounded once.

#include <metal_stdlib>

#include "common/fragment.h"
#include "common/tile.h"
#include "matmul_constants.h"
#include "matmul_params.h"
#include "matmul_place.h"
#include "matmul_variants.h"

using namespace metal;
using namespace mpsk;

// How fragments lie in a tile of a or b whose rows are `pitch` elements apart, in elements.
struct tile_walk {
  int pitch;
  int k;     // from one step of k to the next
  int frag;  // from one fragment of m or n to the next
  bool transposed;

  // `along_k`: the rows of the tile are those of m or n.
  tile_walk(int pitch, bool along_k, bool is_a)
      : pitch(pitch), k(along_k ? 1 : pitch), frag(frag_size * (along_k ? pitch : 1)), transposed(along_k != is_a) {}
};

// What a simdgroup makes of a tile of out: rows x columns fragments, for each of `products`.
template <typename T, int rows, int columns, int products>
struct tile_part {
  static constant constexpr int count = products * rows * columns;
  frag<float> sums[products][rows][columns];

  void clear() {
#pragma clang loop unroll(full)
    for (int i = 0; i < count; ++i) {
      sums[i / (rows * columns)][i / columns % rows][i % columns] =
          make_filled_simdgroup_matrix<float, frag_size>(0.0f);
    }
  }

  // Adds what frag_size steps of k give: a and b are where this part begins in the tiles, and the next of the b_size
  // elements of each product. The barriers cost nothing and keep the compiler from moving the loads of later steps up
  // here, where their fragments would take registers.
  __attribute__((always_inline)) void multiply(const threadgroup T* a, tile_walk a_walk, const threadgroup T* b,
                                               tile_walk b_walk, int b_size) {
    frag<T> left[rows];
    frag<T> right[columns];
    simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; ++i) {
      load_frag(left[i], a + i * a_walk.frag, a_walk.pitch, a_walk.transposed);
    }
#pragma clang loop unroll(full)
    for (int product = 0; product < products; ++product) {
      simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
      for (int j = 0; j < columns; ++j) {
        load_frag(right[j], b + product * b_size + j * b_walk.frag, b_walk.pitch, b_walk.transposed);
      }
      simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
      for (int i = 0; i < rows; ++i) {
#pragma clang loop unroll(full)
        for (int j = 0; j < columns; ++j) {
          simdgroup_multiply_accumulate(sums[product][i][j], left[i], right[j], sums[product][i][j]);
        }
      }
    }
  }

  // The two sums that a lane holds of fragment i.
  float2 of_lane(int i) {
    thread frag<float>& f = sums[i / (rows * columns)][i / columns % rows][i % columns];
    return float2(f.thread_elements()[0], f.thread_elements()[1]);
  }

  // The same with those of `others` further shares of k, which lie `step` apart.
  template <int others>
  __attribute__((always_inline)) float2 of_lane(int i, const threadgroup float2* shares, int step) {
    float2 result = of_lane(i);
#pragma clang loop unroll(full)
    for (int other = 0; other < others; ++other) {
      result += shares[other * step + i * 32];
    }
    return result;
  }

  // Stores those of a product as they are. `to` is where those of its first fragment go, in rows `pitch` apart.
  template <int others, typename Result>
  __attribute__((always_inline)) void store(int product, device Result* to, long pitch,
                                            const threadgroup float2* shares, int step) {
#pragma clang loop unroll(full)
    for (int i = 0; i < rows; ++i) {
#pragma clang loop unroll(full)
      for (int j = 0; j < columns; ++j) {
        *(device vec<Result, 2>*)(to + j * frag_size) =
            vec<Result, 2>(of_lane<others>((product * rows + i) * columns + j, shares, step));
      }
      to += frag_size * pitch;
    }
  }
};

// matmul_tile: a threadgroup makes a bm x bn tile of out, while tiles of a and b, bk deep, pass through threadgroup
// memory. wm x wn simdgroups each keep a part of it in registers, as fragments. wk times as many share the depth: each
// multiplies its share of bk, and their sums are added up in the end, in order.
//
// matmul_gated: the same with two products of one a, that the epilogue makes one.
// matmul_packed: a threadgroup makes `packs` tiles, each by a simdgroup of its own, of as many products of a batch.
//
// Grid: as matmul_place.h has it, z by packs. Threadgroup: (32, wm * wn * wk * packs).
//
// Threadgroup bytes: sizeof(T) * ((bm + products * bn) * bk + padding of 16 bytes a row), times packs, or what sums
// take on their way, 4 * (wk - 1) * products * bm * bn, if that is more; the most is 30720, of 40x64 with 4 shares.
//
// Necessary: 2 m n k FLOP; a and b read once, out written once. What the kernel adds:
// - a is read ceil(n / bn) times and b ceil(m / bm) times, most of it from cache: m n k (1 / bm + 1 / bn) elements;
// - tiles at an edge multiply the zeros that fill them up; along k, those that fill up eight;
// - bk of k cost two barriers, and 8 of k cost a simdgroup bm / wm / 8 + bn / wn / 8 fragment loads for as many
//   multiplications as their product: 0.5 for each at 64x64 by 2x2, 0.375 by 1x2, 1 at 16x32 by 1x2;
// - wk > 1 costs two barriers and 8 (wk - 1) bytes of threadgroup memory for each element of out, for a grid as large
//   as that of a tile that much smaller, whose operands would be read that much more often.
//
// a and b enter the multiplications in their own type: the products of two halves or bfloats are exact in fp32.
template <typename T, int bm, int bn, int bk, int wm, int wn, int wk, int packs, int products>
[[kernel, max_total_threads_per_threadgroup(32 * wm * wn * wk * packs)]] void matmul_tile(
    const device T* a [[buffer(matmul_buffer_a)]], const device T* b [[buffer(matmul_buffer_b)]],
    device T* out [[buffer(matmul_buffer_out)]], constant matmul_params& p [[buffer(matmul_buffer_params)]],
    device float* partials [[buffer(matmul_buffer_partials), function_constant(is_partial)]],
    const device T* bias [[buffer(matmul_buffer_bias), function_constant(has_bias)]],
    const device T* residual [[buffer(matmul_buffer_residual), function_constant(has_residual)]],
    device T* preactivation [[buffer(matmul_buffer_preactivation), function_constant(has_preactivation)]],
    device T* up [[buffer(matmul_buffer_up), function_constant(has_preactivation)]],
    const device T* second_a [[buffer(matmul_buffer_second_a), function_constant(has_second_a)]],
    const device T* second_b [[buffer(matmul_buffer_second_b), function_constant(has_second_b)]],
    const device int* offsets [[buffer(matmul_buffer_offsets), function_constant(has_offsets)]],
    const device int* indices [[buffer(matmul_buffer_indices), function_constant(is_gathered)]],
    uint3 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]], uint simd_index [[simdgroup_index_in_threadgroup]]) {
  static_assert(packs == 1 || wm * wn * wk == 1, "a pack is the work of one simdgroup");
  constexpr int threads = packs == 1 ? 32 * wm * wn * wk : 32;
  constexpr int row_frags = bm / wm / frag_size;  // fragments of a simdgroup
  constexpr int column_frags = bn / wn / frag_size;
  // A tile keeps the orientation of its operand, so that the copy moves along the shorter stride on both sides.
  constexpr int a_upright = tile_vectors<T>(bm, bk), a_lying = tile_vectors<T>(bk, bm);
  constexpr int b_upright = tile_vectors<T>(bk, bn), b_lying = tile_vectors<T>(bn, bk);
  constexpr int a_size = a_upright > a_lying ? a_upright : a_lying;
  constexpr int b_size = b_upright > b_lying ? b_upright : b_lying;
  constexpr int tiles_size = a_size + products * b_size;
  constexpr int sums_size = (wk - 1) * products * bm * bn / 4;  // the sums of all but the first share of the depth
  threadgroup uint4 memory[packs * (tiles_size > sums_size ? tiles_size : sums_size)];
  const uint pack = packs == 1 ? 0 : simd_index;
  threadgroup uint4* a_tile = memory + pack * tiles_size;
  threadgroup uint4* b_tile = a_tile + a_size;
  const uint thread_in_tile = packs == 1 ? thread_index : lane;
  const uint z = group.z * packs + pack;
  if (packs != 1 && z >= p.batch) {
    return;  // a whole simdgroup, which meets no other
  }

  const tile_place place = find_place<bm, bn>(group.x, z, offsets, p, lane);
  if (!place.exists) {
    return;  // the whole threadgroup
  }
  const int share = packs == 1 ? int(simd_index) / (wm * wn) : 0;  // of the depth
  const int place_in_tile = packs == 1 ? int(simd_index) % (wm * wn) : 0;
  int row = place_in_tile / wn * (bm / wm);  // of this simdgroup's part of the tile
  int column = place_in_tile % wn * (bn / wn);
  tile_part<T, row_frags, column_frags, products> part;
  part.clear();

  const tile_walk a_walk(tile_pitch<T>(a_along_m ? bm : bk), !a_along_m, true);
  const tile_walk b_walk(tile_pitch<T>(b_along_k ? bk : bn), b_along_k, false);
  constexpr int depth = bk / wk;
  const threadgroup T* a_part = (const threadgroup T*)a_tile + row / frag_size * a_walk.frag + share * depth * a_walk.k;
  const threadgroup T* b_part =
      (const threadgroup T*)b_tile + column / frag_size * b_walk.frag + share * depth * b_walk.k;
  constexpr int b_elements = b_size * vector_elements<T>();
  for (uint term = place.term; term < place.term_end; ++term) {
    const bool second_pair = has_second_a && term != 0;
    const long a_stride_m = second_pair ? p.second_a_stride_m : p.a_stride_m;
    const long a_stride_k = second_pair ? p.second_a_stride_k : p.a_stride_k;
    // Where indices name the rows of a tile of a, they say where it lies along m, or along k.
    const bool names_m = is_gathered && !a_along_m, names_k = is_gathered && a_along_m;
    const device T* a_source = (second_pair ? second_a : a) + place.a_offset + term_offset(term, p.a_batch_strides, p) +
                               (names_m ? 0 : long(place.first_row) * a_stride_m) +
                               (names_k ? 0 : long(place.k) * a_stride_k);
    const device T* b_source[products];
#pragma clang loop unroll(full)
    for (int product = 0; product < products; ++product) {
      const bool second = second_pair || product != 0;
      b_source[product] = (second ? second_b : b) + place.b_offset + term_offset(term, p.b_batch_strides, p) +
                          long(place.first_column) * (second ? p.second_b_stride_n : p.b_stride_n) +
                          long(place.k) * (second ? p.second_b_stride_k : p.b_stride_k);
    }
    for (ulong step = place.k; step < place.k_end; step += bk) {
      const int k_count = count_in_tile(place.k_end - step, bk);
      if (packs == 1) {
        threadgroup_barrier(mem_flags::mem_threadgroup);  // the previous tiles have been read
      } else {
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
      if (names_k) {
        const gathered_rows rows = {indices + step, a_stride_k, k_count, p.a_rows};
        load_tile<T, bk, bm, threads>(a_tile, a_source, rows, a_stride_m, place.row_count, a_vectors, thread_in_tile);
      } else if (names_m) {
        const gathered_rows rows = {indices + place.first_row, a_stride_m, place.row_count, p.a_rows};
        load_tile<T, bm, bk, threads>(a_tile, a_source, rows, a_stride_k, k_count, a_vectors, thread_in_tile);
      } else if (a_along_m) {
        load_tile<T, bk, bm, threads>(a_tile, a_source, strided_rows{a_stride_k, k_count}, a_stride_m, place.row_count,
                                      a_vectors, thread_in_tile);
      } else {
        load_tile<T, bm, bk, threads>(a_tile, a_source, strided_rows{a_stride_m, place.row_count}, a_stride_k, k_count,
                                      a_vectors, thread_in_tile);
      }
      a_source += names_k ? 0 : bk * a_stride_k;
#pragma clang loop unroll(full)
      for (int product = 0; product < products; ++product) {
        const bool second = second_pair || product != 0;
        const long stride_k = second ? p.second_b_stride_k : p.b_stride_k;
        const long stride_n = second ? p.second_b_stride_n : p.b_stride_n;
        if (b_along_k) {
          load_tile<T, bn, bk, threads>(b_tile + product * b_size, b_source[product],
                                        strided_rows{stride_n, place.column_count}, stride_k, k_count, b_vectors,
                                        thread_in_tile);
        } else {
          load_tile<T, bk, bn, threads>(b_tile + product * b_size, b_source[product], strided_rows{stride_k, k_count},
                                        stride_n, place.column_count, b_vectors, thread_in_tile);
        }
        b_source[product] += bk * stride_k;
      }
      if (packs == 1) {
        threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes the tiles
      } else {
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }

      if (k_count == bk) {
#pragma clang loop unroll(full)
        for (int s = 0; s < depth; s += frag_size) {
          part.multiply(a_part + s * a_walk.k, a_walk, b_part + s * b_walk.k, b_walk, b_elements);
        }
      } else {
        for (int s = 0; s < depth && share * depth + s < k_count; s += frag_size) {
          part.multiply(a_part + s * a_walk.k, a_walk, b_part + s * b_walk.k, b_walk, b_elements);
        }
      }
    }
  }

  // [share after the first][simdgroup of a share][fragment][lane]
  threadgroup float2* shares = (threadgroup float2*)memory + place_in_tile * part.count * 32 + lane;
  constexpr int share_step = wm * wn * part.count * 32;
  if (wk > 1) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // the last tiles have been read
    if (share != 0) {
#pragma clang loop unroll(full)
      for (int i = 0; i < part.count; ++i) {
        shares[(share - 1) * share_step + i * 32] = part.of_lane(i);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes the sums
    if (share != 0) {
      return;
    }
  }

  // Straight from registers, two elements at a time: 16-byte stores would take a trip through threadgroup memory, that
  // is bm * bn * 4 more bytes of it written and read, and two more barriers.
  const matmul_result<T> result =
      result_at(out, partials, bias, residual, preactivation, up, z, place.partial, place.split, p);
  const frag_position at = position_in_frag(ushort(lane));
  row += at.row;
  column += at.col;
  if (result.as_they_are && place.row_count == bm && place.column_count == bn) {
    // Most tiles: to look at each element would take several times the instructions.
    const ulong m = place.first_row + row, n = place.first_column + column;
    if (is_partial && place.partial) {
#pragma clang loop unroll(full)
      for (int product = 0; product < products; ++product) {
        part.template store<wk - 1>(product, result.partial_at(m, n) + product * result.partials_step,
                                    long(result.split_columns), shares, share_step);
      }
    } else {
      part.template store<wk - 1>(0, result.end.out + result.end.out_strides.at(m, n), result.end.out_strides.m, shares,
                                  share_step);
    }
    return;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < row_frags; ++i) {
#pragma clang loop unroll(full)
    for (int j = 0; j < column_frags; ++j) {
      float2 left = 0.0f, right = 0.0f;  // the sums of two neighbours
#pragma clang loop unroll(full)
      for (int product = 0; product < products; ++product) {
        const float2 sums =
            part.template of_lane<wk - 1>((product * row_frags + i) * column_frags + j, shares, share_step);
        left[product] = sums[0];
        right[product] = sums[1];
      }
      const int m = row + i * frag_size;
      const int n = column + j * frag_size;
      if (m < place.row_count && n + 1 < place.column_count) {
        result.store(left, right, place.first_row + m, place.first_column + n);
      } else if (m < place.row_count && n < place.column_count) {
        result.store(left, place.first_row + m, place.first_column + n);
      }
    }
  }
}

#define INSTANTIATE_TILE(dtype, T, bm, bn, bk, wm, wn, wk)                                                             \
  template [[host_name("matmul_tile_" #dtype "_bm" #bm "_bn" #bn "_bk" #bk "_wm" #wm "_wn" #wn "_wk" #wk)]] [[kernel]] \
  decltype(matmul_tile<T, bm, bn, bk, wm, wn, wk, 1, 1>) matmul_tile<T, bm, bn, bk, wm, wn, wk, 1, 1>;
MATMUL_TILE_VARIANTS(INSTANTIATE_TILE)

#define INSTANTIATE_GATED(dtype, T, bm, bn, bk, wm, wn, wk)                                                        \
  template                                                                                                         \
      [[host_name("matmul_gated_" #dtype "_bm" #bm "_bn" #bn "_bk" #bk "_wm" #wm "_wn" #wn "_wk" #wk)]] [[kernel]] \
      decltype(matmul_tile<T, bm, bn, bk, wm, wn, wk, 1, 2>) matmul_tile<T, bm, bn, bk, wm, wn, wk, 1, 2>;
MATMUL_GATED_VARIANTS(INSTANTIATE_GATED)

#define INSTANTIATE_PACKED(dtype, T, bm, bn, bk, packs)                                    \
  template [[host_name("matmul_packed_" #dtype "_bm" #bm "_bn" #bn "_bk" #bk)]] [[kernel]] \
  decltype(matmul_tile<T, bm, bn, bk, 1, 1, 1, packs, 1>) matmul_tile<T, bm, bn, bk, 1, 1, 1, packs, 1>;
MATMUL_PACKED_VARIANTS(INSTANTIATE_PACKED)

// Where the sum of an element of the split columns goes.
struct sum_place {
  uint batch;
  ulong row, column;
};

// Numbers of 64 bits are divided by a long subroutine, those of 32 are not.
template <typename Index>
sum_place place_of_sum(Index element, Index columns, Index rows) {
  const Index row = element / columns, batch = row / rows;
  return {uint(batch), row - batch * rows, element - row * columns};
}

// matmul_sum: adds up what the splits of k left in `partials`, in their order, and finishes it.
//
// Grid: x and y together: elements of out from column split_from on, all batches, by matmul_threads. Threadgroup:
// (matmul_threads). Necessary: 4 * splits bytes read and sizeof(T) written for each of them; that is all it does.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(matmul_threads)]] void matmul_sum(
    device T* out [[buffer(matmul_buffer_out)]], constant matmul_params& p [[buffer(matmul_buffer_params)]],
    const device float* partials [[buffer(matmul_buffer_partials)]],
    const device T* bias [[buffer(matmul_buffer_bias), function_constant(has_bias)]],
    const device T* residual [[buffer(matmul_buffer_residual), function_constant(has_residual)]],
    device T* preactivation [[buffer(matmul_buffer_preactivation), function_constant(has_preactivation)]],
    device T* up [[buffer(matmul_buffer_up), function_constant(has_preactivation)]],
    uint2 group [[threadgroup_position_in_grid]], uint2 groups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  const ulong columns = p.n - p.split_from;
  const ulong all = p.batch * p.m * columns;
  const ulong element = (ulong(group.y) * groups.x + group.x) * matmul_threads + thread_index;
  if (element >= all) {
    return;
  }
  float2 sums = 0.0f;
  for (uint split = 0; split < p.splits; ++split) {
    if (is_gated) {
      sums += float2(partials[2 * split * all + element], partials[(2 * split + 1) * all + element]);
    } else {
      sums[0] += partials[split * all + element];
    }
  }
  const sum_place place =
      all >> 32 == 0 ? place_of_sum<uint>(element, columns, p.m) : place_of_sum<ulong>(element, columns, p.m);
  const matmul_result<T> result =
      result_at<T>(out, nullptr, bias, residual, preactivation, up, place.batch, false, 0, p);
  result.store(sums, place.row, p.split_from + place.column);
}

#define INSTANTIATE_SUM(dtype, T) \
  template [[host_name("matmul_sum_" #dtype)]] [[kernel]] decltype(matmul_sum<T>) matmul_sum<T>;
MATMUL_SUM_VARIANTS(INSTANTIATE_SUM)
