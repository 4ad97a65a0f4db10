// What the matmul kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

#include "common/activation_kinds.h"

enum matmul_buffer {
  matmul_buffer_a = 0,
  matmul_buffer_b = 1,
  matmul_buffer_out = 2,
  matmul_buffer_params = 3,
  matmul_buffer_partials = 4,  // fp32 sums, [split][product][batch][m][n - split_from]
  matmul_buffer_bias = 5,
  matmul_buffer_residual = 6,
  matmul_buffer_preactivation = 7,
  matmul_buffer_up = 8,
  matmul_buffer_second_a = 9,
  matmul_buffer_second_b = 10,
  matmul_buffer_offsets = 11,
  matmul_buffer_indices = 12,
};

// Function constants, all bool. The ids of this family: 100 to 199.
enum matmul_constant {
  matmul_constant_a_along_m = 100,  // the shorter stride of a is that of m, not of k
  matmul_constant_b_along_k = 101,  // the shorter stride of b is that of k, not of n
  matmul_constant_a_vectors = 102,  // the shorter stride of a is 1 and all else of it is 16-byte aligned
  matmul_constant_b_vectors = 103,  // the same for b, and for a second b
  matmul_constant_partial = 104,    // sums of split columns go to `partials`, for matmul_sum to finish
  matmul_constant_bias = 105,
  matmul_constant_residual = 106,
  matmul_constant_preactivation = 107,  // what the activation is applied to is stored as well
  matmul_constant_second_a = 108,       // a second pair of operands, whose product is added to the first
  matmul_constant_second_b = 109,       // a second b, of such a pair or of a gated one
  matmul_constant_offsets = 110,        // they divide the rows of a into groups, each with a b of its own,
  matmul_constant_grouped_k = 111,      // or k into groups, each with an out of its own
  matmul_constant_gathered = 112,       // the grouped rows of a are those that indices name
  matmul_constant_gated = 113,
  matmul_constant_activation = 114,  // there is one
  matmul_constant_summed = 115,      // products of `terms` are added up
};

enum {
  matmul_max_batch_dims = 8,  // after the glue has merged neighbours that one stride can describe
  matmul_skinny_columns = 4,  // rows of b^T that a threadgroup of matmul_skinny_k walks
  matmul_skinny_k_simdgroups = 4,
  matmul_skinny_n_simdgroups = 8,
  matmul_tensor_k = 256,           // of k that matmul_tensor takes in a step
  matmul_tensor_gathered_k = 64,   // and matmul_tensor_gathered, whose rows of a pass through threadgroup memory
  matmul_threads = 256,            // of a threadgroup of the kernels that go element by element
  matmul_backward_simdgroups = 8,  // rows that a threadgroup of linear_backward takes at a time
  matmul_scatter_rows = 16,        // of out that a threadgroup of grouped_matmul_scatter makes
};

// Strides in elements.
struct matmul_params {
  uint64_t m;
  uint64_t n;
  uint64_t k;
  uint64_t split_from;   // the column of out, of whole tiles, from which on k is split; n: none is
  uint64_t k_per_split;  // of terms, where they are added up
  int64_t a_stride_m;
  int64_t a_stride_k;
  int64_t b_stride_k;
  int64_t b_stride_n;
  int64_t second_a_stride_m;
  int64_t second_a_stride_k;
  int64_t second_b_stride_k;
  int64_t second_b_stride_n;
  int64_t out_stride_m;
  int64_t out_stride_n;
  int64_t bias_stride_m;
  int64_t bias_stride_n;
  int64_t residual_stride_m;
  int64_t residual_stride_n;
  int64_t a_batch_strides[matmul_max_batch_dims];  // innermost dimension first; 0 where a is broadcast; then terms
  int64_t b_batch_strides[matmul_max_batch_dims];  // of grouped products: [0] is from a group's b to the next
  int64_t residual_batch_strides[matmul_max_batch_dims];
  int64_t out_batch_strides[matmul_max_batch_dims];
  uint32_t batch_sizes[matmul_max_batch_dims];
  uint32_t batch_dims;
  uint32_t batch;
  uint32_t splits;
  uint32_t tiles_m;  // tiles of out
  uint32_t tiles_n;
  uint32_t whole_tiles_n;  // before split_from
  uint32_t band;           // rows of tiles that are walked together
  uint32_t activation;
  uint32_t groups;     // as offsets has them
  uint32_t a_rows;     // that indices may name
  uint32_t term_dims;  // of those that are added up; they follow those of the batch
  uint32_t terms;      // products of their sizes
};

static_assert(sizeof(matmul_params) == 488, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(matmul_params, a_stride_m) == 40);
static_assert(offsetof(matmul_params, a_batch_strides) == 152);
static_assert(offsetof(matmul_params, batch_sizes) == 408);
static_assert(offsetof(matmul_params, batch_dims) == 440);
static_assert(offsetof(matmul_params, a_rows) == 476);
#endif

// linear_backward: gradients of rows x columns elements. The rows of a chunk share a threadgroup.
enum linear_backward_buffer {
  linear_backward_buffer_grad = 0,
  linear_backward_buffer_preactivation = 1,
  linear_backward_buffer_out = 2,
  linear_backward_buffer_sums = 3,  // [chunk][column], fp32
  linear_backward_buffer_params = 4,
};
enum linear_backward_constant {
  linear_backward_constant_activation = 120,  // without, out is not written: it would equal grad
  linear_backward_constant_bias = 121,        // sums are written
};
struct linear_backward_params {
  uint64_t rows;
  uint64_t columns;
  int64_t grad_stride_column;
  int64_t preactivation_stride_column;
  uint64_t sizes[matmul_max_batch_dims];  // of rows, innermost dimension first, those that one stride describes merged
  int64_t grad_strides[matmul_max_batch_dims];
  int64_t preactivation_strides[matmul_max_batch_dims];
  uint32_t dims;
  uint32_t rows_per_chunk;
  uint32_t activation;
  uint32_t pad;
};
static_assert(sizeof(linear_backward_params) == 240, "no implicit padding");

// grouped_matmul_scatter: row t of out is the sum of the rows r with indices[r] == t.
enum grouped_matmul_scatter_buffer {
  grouped_matmul_scatter_buffer_rows = 0,
  grouped_matmul_scatter_buffer_indices = 1,
  grouped_matmul_scatter_buffer_out = 2,
  grouped_matmul_scatter_buffer_params = 3,
};
struct grouped_matmul_scatter_params {
  uint64_t columns;
  int64_t stride_row;
  int64_t stride_column;
  int64_t stride_index;
  uint32_t rows;
  uint32_t count;  // rows of out
};
static_assert(sizeof(grouped_matmul_scatter_params) == 40, "no implicit padding");
