// What the matmul kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

enum matmul_buffer { matmul_buffer_a = 0, matmul_buffer_b = 1, matmul_buffer_out = 2, matmul_buffer_params = 3 };

// Function constants, all bool. The ids of this family: 100 to 199.
enum matmul_constant {
  matmul_constant_a_along_m = 100,  // the shorter stride of a is that of m, not of k
  matmul_constant_b_along_k = 101,  // the shorter stride of b is that of k, not of n
  matmul_constant_a_vectors = 102,  // the shorter stride of a is 1 and all else of it is 16-byte aligned
  matmul_constant_b_vectors = 103,
};

enum { matmul_max_batch_dims = 8 };  // after the glue has merged neighbours that one stride can describe

// Strides in elements; out is contiguous.
struct matmul_params {
  uint64_t m;
  uint64_t n;
  uint64_t k;
  int64_t a_stride_m;
  int64_t a_stride_k;
  int64_t b_stride_k;
  int64_t b_stride_n;
  int64_t a_batch_strides[matmul_max_batch_dims];  // innermost dimension first; 0 where a is broadcast
  int64_t b_batch_strides[matmul_max_batch_dims];
  uint32_t batch_sizes[matmul_max_batch_dims];
  uint32_t batch_dims;
  uint32_t tiles_m;  // tiles of out
  uint32_t tiles_n;
  uint32_t band;  // rows of tiles that are walked together
};

static_assert(sizeof(matmul_params) == 232, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(matmul_params, a_stride_m) == 24);
static_assert(offsetof(matmul_params, a_batch_strides) == 56);
static_assert(offsetof(matmul_params, b_batch_strides) == 120);
static_assert(offsetof(matmul_params, batch_sizes) == 184);
static_assert(offsetof(matmul_params, batch_dims) == 216);
static_assert(offsetof(matmul_params, band) == 228);
#endif
