// out[z, m, n] = sum over k of a[z, m, k] * b[z, k, n] on the matrix units of M5, in fp32, finished by the epilogue,
// rounded once. In Metal 4, and so in a library of its own.

#include <metal_stdlib>
#include <metal_tensor>

#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>

#include "common/tile.h"
#include "matmul_constants.h"
#include "matmul_params.h"
#include "matmul_place.h"
#include "matmul_variants.h"

using namespace metal;
using namespace mpsk;

template <typename T>
struct tensor_operands {
  const device T* a;
  const device T* b;
  const device T* second_a;
  const device T* second_b;
  const device int* indices;
};

// Where in a tile a simdgroup's part begins; and what its threadgroup shares.
struct part_of_tile {
  int row, column;
  uint thread_index;
  threadgroup uint4* memory;
};

// Stores what a simdgroup has summed up: row_count x column_count elements from first_row and first_column on.
//
// A lane's elements are where the chip puts them: each is asked for its place, and four that turn out to be neighbours,
// in either direction, are stored together.
template <typename T, typename Sums>
void store_part(thread Sums& sums, thread Sums& up_sums, ulong first_row, ulong first_column, int row_count,
                int column_count, matmul_result<T> result) {
  constexpr ushort run = 4;  // elements whose places are looked at together
#pragma clang loop unroll(full)
  for (ushort i = 0; i < sums.get_capacity(); i += run) {
    float2 both[run];  // by column, if they turn out to be neighbours
    bool neighbours = true;
    const auto at = sums.get_multidimensional_index(i);  // (column, row)
    const int first = at[0] / run * run;
#pragma clang loop unroll(full)
    for (ushort e = 0; e < run; ++e) {
      const bool ascends = at[0] == first;
      const auto its = sums.get_multidimensional_index(i + e);
      neighbours = neighbours && its[1] == at[1] && its[0] == (ascends ? first + e : first + run - 1 - e);
      both[e] = float2(sums[i + e], up_sums[i + e]);
    }
    if (neighbours && at[0] != first) {
      const float2 last = both[0], third = both[1];
      both[0] = both[3];
      both[1] = both[2];
      both[2] = third;
      both[3] = last;
    }
    if (neighbours && at[1] < row_count && first + run <= column_count) {
      result.store(both, first_row + at[1], first_column + first);
      continue;
    }
#pragma clang loop unroll(full)
    for (ushort e = 0; e < run; ++e) {
      const auto its = sums.get_multidimensional_index(i + e);
      if (sums.is_valid_element(i + e) && its[1] < row_count && its[0] < column_count) {
        result.store(float2(sums[i + e], up_sums[i + e]), first_row + its[1], first_column + its[0]);
      }
    }
  }
}

// The `rows` x `columns` part of a tile that a simdgroup makes.
//
// Rows of a that indices name are gathered into threadgroup memory first, by all simdgroups together, as a tile of
// load_tile: matmul2d takes its operands from threadgroup memory as well.
//
// The operands' layout is part of the sums' type, and so of the template.
template <typename T, int bm, int rows, int columns, int threads, int products, bool gathered, bool along_m,
          bool along_k>
void make_part(tensor_operands<T> from, constant matmul_params& p, tile_place place, matmul_result<T> result,
               part_of_tile part) {
  const int row = part.row, column = part.column;
  // fp32 operands are rounded to 11 bits of significand there; the glue comes here where torch allows that.
  constexpr auto descriptor = mpp::tensor_ops::matmul2d_descriptor(
      rows, columns, static_cast<int>(dynamic_extent), along_m, along_k, is_same_v<T, float>,
      mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
  mpp::tensor_ops::matmul2d<descriptor, execution_simdgroup> product;
  using operand = tensor<device T, dextents<int, 2>, tensor_inline>;
  using gathered_operand = tensor<threadgroup T, dextents<int, 2>, tensor_inline>;
  using left_operand = conditional_t<gathered, gathered_operand, operand>;
  auto sums = product.template get_destination_cooperative_tensor<left_operand, operand, float>();
  auto up_sums = product.template get_destination_cooperative_tensor<left_operand, operand, float>();
#pragma clang loop unroll(full)
  for (ushort i = 0; i < sums.get_capacity(); ++i) {
    sums[i] = 0.0f;
    up_sums[i] = 0.0f;
  }

  const int row_count = min(place.row_count - row, rows);
  const int column_count = min(place.column_count - column, columns);
  const bool exists = row_count > 0 && column_count > 0;  // the same for all lanes
  const ulong first_column = place.first_column + column;
  constexpr int depth = gathered ? matmul_tensor_gathered_k : matmul_tensor_k;
  for (uint term = place.term; term < place.term_end; ++term) {
    const bool second_pair = has_second_a && term != 0;
    const device T* a =
        (second_pair ? from.second_a : from.a) + place.a_offset + term_offset(term, p.a_batch_strides, p);
    const long a_stride_m = second_pair ? p.second_a_stride_m : p.a_stride_m;
    const long a_stride_k = second_pair ? p.second_a_stride_k : p.a_stride_k;
    const long b_offset = place.b_offset + term_offset(term, p.b_batch_strides, p);
    for (ulong step = place.k; step < place.k_end; step += depth) {
      const int k_count = count_in_tile(place.k_end - step, depth);
      conditional_t<gathered, threadgroup T*, device T*> a_part;
      int a_pitch;
      if constexpr (gathered) {
        threadgroup_barrier(mem_flags::mem_threadgroup);  // the previous rows have been read
        if constexpr (along_m) {
          const gathered_rows named = {from.indices + step, a_stride_k, k_count, p.a_rows};
          load_tile<T, depth, bm, threads>(part.memory, a + long(place.first_row) * a_stride_m, named, a_stride_m,
                                           place.row_count, a_vectors, part.thread_index);
        } else {
          const gathered_rows named = {from.indices + place.first_row, a_stride_m, place.row_count, p.a_rows};
          load_tile<T, bm, depth, threads>(part.memory, a + long(step) * a_stride_k, named, a_stride_k, k_count,
                                           a_vectors, part.thread_index);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // publishes the rows
        a_pitch = tile_pitch<T>(along_m ? bm : depth);
        a_part = (threadgroup T*)part.memory + row * (along_m ? 1 : a_pitch);
      } else {
        // Simdgroups stay in step, so that what one has read is in cache for those that read it too.
        threadgroup_barrier(mem_flags::mem_none);
        a_pitch = int(along_m ? a_stride_k : a_stride_m);
        a_part = (device T*)a + long(place.first_row + row) * a_stride_m + long(step) * a_stride_k;
      }
      if (!exists) {
        continue;
      }
      const auto a_extents = along_m ? dextents<int, 2>(row_count, k_count) : dextents<int, 2>(k_count, row_count);
      const auto b_extents =
          along_k ? dextents<int, 2>(k_count, column_count) : dextents<int, 2>(column_count, k_count);
      left_operand left(a_part, a_extents, array<int, 2>{1, a_pitch});
#pragma clang loop unroll(full)
      for (int q = 0; q < products; ++q) {
        const bool second = second_pair || q != 0;
        const long b_stride_k = second ? p.second_b_stride_k : p.b_stride_k;
        const long b_stride_n = second ? p.second_b_stride_n : p.b_stride_n;
        const device T* b = (second ? from.second_b : from.b) + b_offset;
        operand right((device T*)b + long(first_column) * b_stride_n + long(step) * b_stride_k, b_extents,
                      array<int, 2>{1, int(along_k ? b_stride_n : b_stride_k)});
        if (q == 0) {
          product.run(left, right, sums);
        } else {
          product.run(left, right, up_sums);
        }
      }
    }
  }
  store_part<T>(sums, up_sums, place.first_row + row, first_column, row_count, column_count, result);
}

// matmul_tensor: a threadgroup of wm x wn simdgroups makes a bm x bn tile of out, each simdgroup its part of it by
// itself, in registers. The matrix units read both operands from memory; none passes through threadgroup memory.
//
// matmul_tensor_gated: the same with two products of one a, that the epilogue makes one.
// matmul_tensor_gathered: the same with rows of a that indices name.
//
// Grid: as matmul_place.h has it, z: batch. Threadgroup: (32, wm * wn). Threadgroup bytes: 16, of which nothing is
// used; of matmul_tensor_gathered 64 * (64 * sizeof(T) + 16).
//
// Necessary: 2 m n k FLOP; a and b read once, out written once. What the kernel adds:
// - a simdgroup asks for m n k (wm / bm + wn / bn) elements, of which simdgroups in one row or column of the tile share
//   theirs through L1: m n k (1 / bm + 1 / bn) come from L2, as in matmul_tile;
// - gathered rows are written to threadgroup memory once and read wn times, with two barriers for each 64 of k;
// - parts at an edge multiply as many rows and columns as whole ones, and k in steps of 16;
// - out is written four elements at a time by lanes in several rows, or one by one: the layout of the sums decides,
//   which Metal leaves open.
//
// Where it is right to use it, the glue knows: the GPU family and the library that Metal opened (runtime.h), operands
// with a stride of 1 and aligned rows, pitches that fit the 32 bits that tensors have for them.
template <typename T, int bm, int bn, int wm, int wn, int products, bool gathered>
[[kernel, max_total_threads_per_threadgroup(32 * wm * wn)]] void matmul_tensor(
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
  constexpr int rows = bm / wm, columns = bn / wn;
  // Only gathered rows need it, but it has to be declared here.
  constexpr int upright = tile_vectors<T>(bm, matmul_tensor_gathered_k);
  constexpr int lying = tile_vectors<T>(matmul_tensor_gathered_k, bm);
  threadgroup uint4 memory[!gathered ? 1 : upright > lying ? upright : lying];
  const tile_place place = find_place<bm, bn>(group.x, group.z, offsets, p, lane);
  if (!place.exists) {
    return;  // the whole threadgroup
  }
  const part_of_tile at = {int(simd_index) / wn * rows, int(simd_index) % wn * columns, thread_index, memory};
  const tensor_operands<T> from = {a, b, second_a, second_b, indices};
  const matmul_result<T> result =
      result_at(out, partials, bias, residual, preactivation, up, group.z, place.partial, place.split, p);
  constexpr int threads = 32 * wm * wn;
  if (a_along_m && b_along_k) {
    make_part<T, bm, rows, columns, threads, products, gathered, true, true>(from, p, place, result, at);
  } else if (a_along_m) {
    make_part<T, bm, rows, columns, threads, products, gathered, true, false>(from, p, place, result, at);
  } else if (b_along_k) {
    make_part<T, bm, rows, columns, threads, products, gathered, false, true>(from, p, place, result, at);
  } else {
    make_part<T, bm, rows, columns, threads, products, gathered, false, false>(from, p, place, result, at);
  }
}

// tensor_units_probe: never run. That a pipeline can be made of it tells the glue that this system's compiler takes
// what the kernels above are made of, before any of them is chosen.
kernel void tensor_units_probe(device half* a [[buffer(0)]], device half* b [[buffer(1)]],
                               device float* out [[buffer(2)]], uint lane [[thread_index_in_threadgroup]]) {
  constexpr auto descriptor =
      mpp::tensor_ops::matmul2d_descriptor(32, 32, static_cast<int>(dynamic_extent), false, false, false,
                                           mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
  mpp::tensor_ops::matmul2d<descriptor, execution_simdgroup> product;
  using operand = tensor<device half, dextents<int, 2>, tensor_inline>;
  operand left(a, dextents<int, 2>(32, 32), array<int, 2>{1, 32});
  operand right(b, dextents<int, 2>(32, 32), array<int, 2>{1, 32});
  auto sums = product.get_destination_cooperative_tensor<operand, operand, float>();
  for (ushort i = 0; i < sums.get_capacity(); ++i) {
    sums[i] = 0.0f;
  }
  product.run(left, right, sums);
  out[lane] = sums[0];
}

#define INSTANTIATE_TENSOR(dtype, T, bm, bn, wm, wn)                                                 \
  template [[host_name("matmul_tensor_" #dtype "_bm" #bm "_bn" #bn "_wm" #wm "_wn" #wn)]] [[kernel]] \
  decltype(matmul_tensor<T, bm, bn, wm, wn, 1, false>) matmul_tensor<T, bm, bn, wm, wn, 1, false>;
MATMUL_TENSOR_VARIANTS(INSTANTIATE_TENSOR)

#define INSTANTIATE_TENSOR_GATHERED(dtype, T, bm, bn, wm, wn)                                                 \
  template [[host_name("matmul_tensor_gathered_" #dtype "_bm" #bm "_bn" #bn "_wm" #wm "_wn" #wn)]] [[kernel]] \
  decltype(matmul_tensor<T, bm, bn, wm, wn, 1, true>) matmul_tensor<T, bm, bn, wm, wn, 1, true>;
MATMUL_TENSOR_GATHERED_VARIANTS(INSTANTIATE_TENSOR_GATHERED)

#define INSTANTIATE_TENSOR_GATED(dtype, T, bm, bn, wm, wn)                                                 \
  template [[host_name("matmul_tensor_gated_" #dtype "_bm" #bm "_bn" #bn "_wm" #wm "_wn" #wn)]] [[kernel]] \
  decltype(matmul_tensor<T, bm, bn, wm, wn, 2, false>) matmul_tensor<T, bm, bn, wm, wn, 2, false>;
MATMUL_TENSOR_GATED_VARIANTS(INSTANTIATE_TENSOR_GATED)
