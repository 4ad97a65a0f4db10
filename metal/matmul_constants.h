// What the kernels of matmul.metal and matmul_skinny.metal share: their function constants, batches, the end of a sum.
#pragma once

#include <metal_stdlib>

#include "common/epilogue.h"
#include "matmul_params.h"

constant bool a_along_m [[function_constant(matmul_constant_a_along_m)]];
constant bool b_along_k [[function_constant(matmul_constant_b_along_k)]];
constant bool a_vectors [[function_constant(matmul_constant_a_vectors)]];
constant bool b_vectors [[function_constant(matmul_constant_b_vectors)]];
constant bool is_partial [[function_constant(matmul_constant_partial)]];
constant bool has_bias [[function_constant(matmul_constant_bias)]];
constant bool has_residual [[function_constant(matmul_constant_residual)]];
constant bool has_preactivation [[function_constant(matmul_constant_preactivation)]];
constant bool has_second_a [[function_constant(matmul_constant_second_a)]];
constant bool has_second_b [[function_constant(matmul_constant_second_b)]];
constant bool has_offsets [[function_constant(matmul_constant_offsets)]];
constant bool is_grouped_k [[function_constant(matmul_constant_grouped_k)]];
constant bool is_gathered [[function_constant(matmul_constant_gathered)]];
constant bool is_gated [[function_constant(matmul_constant_gated)]];
constant bool has_activation [[function_constant(matmul_constant_activation)]];
constant bool is_summed [[function_constant(matmul_constant_summed)]];

namespace mpsk {
namespace {  // what uses function constants belongs to its file, as they do

using namespace metal;

// Offset of element i of the dimensions from `first` to `end` of an operand, in elements.
inline long offset_in_dims(uint i, uint first, uint end, constant int64_t* strides, constant matmul_params& p) {
  long offset = 0;
  for (uint d = first; d + 1 < end; ++d) {
    offset += long(i % p.batch_sizes[d]) * strides[d];
    i /= p.batch_sizes[d];
  }
  return first == end ? 0 : offset + long(i) * strides[end - 1];
}

// The same of batch z, and of a term of sums of products.
inline long batch_offset(uint z, constant int64_t* strides, constant matmul_params& p) {
  return offset_in_dims(z, 0, p.batch_dims, strides, p);
}
inline long term_offset(uint term, constant int64_t* strides, constant matmul_params& p) {
  return is_summed ? offset_in_dims(term, p.batch_dims, p.batch_dims + p.term_dims, strides, p) : 0;
}

// Where the sums of one product end up: in out, by way of the epilogue, or unfinished in `partials`.
template <typename T>
struct matmul_result {
  epilogue<T> end;
  device float* partials;  // of this split and product of the batch
  ulong split_from, split_columns;
  ulong partials_step;  // from there to those of the second of a gated pair
  bool partial;
  bool pairs;        // two neighbouring columns may be stored as one
  bool fours;        // four may
  bool plain;        // there is nothing to finish
  bool as_they_are;  // sums are stored unchanged, by pairs

  // Both sums are those of (m, n), or only the first where there is no gated pair.
  void store(float2 sums, ulong row, ulong column) const {
    if (is_partial && partial) {
      device float* at = partial_at(row, column);
      at[0] = sums[0];
      if (is_gated) {
        at[partials_step] = sums[1];
      }
    } else {
      end.out[end.out_strides.at(row, column)] = T(finish(sums, row, column));
    }
  }

  // The same for columns `column`, which is even, and the next.
  void store(float2 left, float2 right, ulong row, ulong column) const {
    if (!pairs) {
      store(left, row, column);
      store(right, row, column + 1);
    } else if (is_partial && partial) {
      device float* at = partial_at(row, column);
      *(device float2*)at = float2(left[0], right[0]);
      if (is_gated) {
        *(device float2*)(at + partials_step) = float2(left[1], right[1]);
      }
    } else {
      const float2 both = float2(finish(left, row, column), finish(right, row, column + 1));
      *(device vec<T, 2>*)(end.out + end.out_strides.at(row, column)) = vec<T, 2>(both);
    }
  }

  // The same for columns `column`, a multiple of 4, and the next three.
  void store(thread const float2* sums, ulong row, ulong column) const {
    if (!fours) {
      store(sums[0], sums[1], row, column);
      store(sums[2], sums[3], row, column + 2);
    } else if (is_partial && partial) {
      device float* at = partial_at(row, column);
      *(device float4*)at = float4(sums[0][0], sums[1][0], sums[2][0], sums[3][0]);
      if (is_gated) {
        *(device float4*)(at + partials_step) = float4(sums[0][1], sums[1][1], sums[2][1], sums[3][1]);
      }
    } else {
      const float4 all = float4(finish(sums[0], row, column), finish(sums[1], row, column + 1),
                                finish(sums[2], row, column + 2), finish(sums[3], row, column + 3));
      *(device vec<T, 4>*)(end.out + end.out_strides.at(row, column)) = vec<T, 4>(all);
    }
  }

  device float* partial_at(ulong row, ulong column) const {
    return partials + row * split_columns + (column - split_from);
  }

  __attribute__((always_inline)) float finish(float2 sums, ulong row, ulong column) const {
    return plain ? sums[0] : finish_all(sums, row, column);
  }

  float finish_all(float2 sums, ulong row, ulong column) const {
    return is_gated ? end.finish_gated(sums[0], sums[1], row, column) : end.finish(sums[0], row, column);
  }
};

template <typename T>
matmul_result<T> result_at(device T* out, device float* partials, const device T* bias, const device T* residual,
                           device T* preactivation, device T* up, uint batch, bool partial, uint split,
                           constant matmul_params& p) {
  const long offset = batch_offset(batch, p.out_batch_strides, p);
  matmul_result<T> result;
  result.end.out = out + offset;
  result.end.bias = bias;
  result.end.residual = residual;
  result.end.preactivation = preactivation;
  result.end.up = up;
  if (has_residual) {
    result.end.residual += batch_offset(batch, p.residual_batch_strides, p);
  }
  if (has_preactivation) {
    result.end.preactivation += offset;
    result.end.up += is_gated ? offset : 0;
  }
  result.end.out_strides = {p.out_stride_m, p.out_stride_n};
  result.end.bias_strides = {p.bias_stride_m, p.bias_stride_n};
  result.end.residual_strides = {p.residual_stride_m, p.residual_stride_n};
  result.end.activation = has_activation ? p.activation : uint(activation_none);
  result.end.adds_bias = has_bias;
  result.end.adds_residual = has_residual;
  result.end.keeps_preactivation = has_preactivation;
  result.partials = partials;
  result.partial = partial;
  result.split_from = p.split_from;
  result.split_columns = p.n - p.split_from;
  result.partials_step = p.batch * p.m * result.split_columns;
  if (is_partial && partial) {
    result.partials += ulong(split) * (is_gated ? 2 : 1) * result.partials_step + batch * p.m * result.split_columns;
  }
  const bool in_rows = (is_partial && partial) || p.out_stride_n == 1;
  result.pairs = p.n % 2 == 0 && in_rows;
  result.fours = p.n % 4 == 0 && in_rows;
  result.plain = !(has_bias || has_residual || has_preactivation || is_gated || has_activation);
  result.as_they_are = result.pairs && (result.plain || (is_partial && partial));
  return result;
}

}  // namespace
}  // namespace mpsk
