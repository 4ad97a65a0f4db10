// Every matmul kernel there is.
#pragma once

// X(dtype, Metal type, bm, bn, bk, wm, wn, wk): a tile of out of bm x bn by wm x wn simdgroups, wk times for shares of
// bk, named matmul_tile_<dtype>_bm<bm>_bn<bn>_bk<bk>_wm<wm>_wn<wn>_wk<wk>
#define MATMUL_TILE_VARIANTS(X)         \
  X(f32, float, 64, 64, 16, 2, 2, 1)    \
  X(f32, float, 32, 64, 16, 1, 2, 1)    \
  X(f32, float, 40, 64, 16, 1, 2, 1)    \
  X(f32, float, 32, 32, 16, 1, 2, 1)    \
  X(f32, float, 32, 32, 64, 1, 1, 4)    \
  X(f32, float, 40, 64, 32, 1, 2, 4)    \
  X(f32, float, 16, 32, 64, 1, 2, 4)    \
  X(f32, float, 16, 16, 128, 1, 1, 8)   \
  X(f16, half, 64, 64, 16, 2, 2, 1)     \
  X(f16, half, 64, 64, 16, 1, 2, 1)     \
  X(f16, half, 64, 32, 32, 2, 2, 1)     \
  X(f16, half, 32, 64, 32, 1, 2, 1)     \
  X(f16, half, 40, 64, 32, 1, 2, 1)     \
  X(f16, half, 32, 64, 16, 1, 2, 1)     \
  X(f16, half, 32, 32, 16, 1, 2, 1)     \
  X(f16, half, 32, 32, 64, 1, 1, 4)     \
  X(f16, half, 40, 64, 64, 1, 2, 4)     \
  X(f16, half, 16, 64, 64, 1, 2, 4)     \
  X(f16, half, 16, 32, 128, 1, 2, 4)    \
  X(f16, half, 16, 16, 256, 1, 1, 8)    \
  X(bf16, bfloat, 64, 64, 16, 2, 2, 1)  \
  X(bf16, bfloat, 64, 64, 16, 1, 2, 1)  \
  X(bf16, bfloat, 64, 32, 32, 2, 2, 1)  \
  X(bf16, bfloat, 32, 64, 32, 1, 2, 1)  \
  X(bf16, bfloat, 40, 64, 32, 1, 2, 1)  \
  X(bf16, bfloat, 32, 64, 16, 1, 2, 1)  \
  X(bf16, bfloat, 32, 32, 16, 1, 2, 1)  \
  X(bf16, bfloat, 32, 32, 64, 1, 1, 4)  \
  X(bf16, bfloat, 40, 64, 64, 1, 2, 4)  \
  X(bf16, bfloat, 16, 64, 64, 1, 2, 4)  \
  X(bf16, bfloat, 16, 32, 128, 1, 2, 4) \
  X(bf16, bfloat, 16, 16, 256, 1, 1, 8)

// The same with two products of one a, named matmul_gated_...
#define MATMUL_GATED_VARIANTS(X)       \
  X(f32, float, 64, 32, 16, 2, 2, 1)   \
  X(f32, float, 32, 32, 16, 2, 2, 1)   \
  X(f32, float, 16, 32, 64, 1, 2, 4)   \
  X(f16, half, 64, 32, 16, 2, 2, 1)    \
  X(f16, half, 32, 32, 16, 2, 2, 1)    \
  X(f16, half, 16, 32, 128, 1, 2, 4)   \
  X(bf16, bfloat, 64, 32, 16, 2, 2, 1) \
  X(bf16, bfloat, 32, 32, 16, 2, 2, 1) \
  X(bf16, bfloat, 16, 32, 128, 1, 2, 4)

// X(dtype, Metal type, bm, bn, wm, wn): the same on the matrix units of M5, named
// matmul_tensor_<dtype>_bm<bm>_bn<bn>_wm<wm>_wn<wn>
#define MATMUL_TENSOR_VARIANTS(X) \
  X(f32, float, 128, 128, 4, 2)   \
  X(f32, float, 64, 64, 2, 2)     \
  X(f32, float, 32, 64, 1, 1)     \
  X(f16, half, 128, 128, 4, 2)    \
  X(f16, half, 64, 64, 2, 2)      \
  X(f16, half, 64, 64, 2, 1)      \
  X(f16, half, 32, 64, 1, 1)      \
  X(bf16, bfloat, 128, 128, 4, 2) \
  X(bf16, bfloat, 64, 64, 2, 2)   \
  X(bf16, bfloat, 64, 64, 2, 1)   \
  X(bf16, bfloat, 32, 64, 1, 1)

// with rows of a that indices name, matmul_tensor_gathered_...
#define MATMUL_TENSOR_GATHERED_VARIANTS(X) \
  X(f32, float, 64, 64, 2, 2)              \
  X(f16, half, 64, 64, 2, 2)               \
  X(bf16, bfloat, 64, 64, 2, 2)

// and matmul_tensor_gated_...
#define MATMUL_TENSOR_GATED_VARIANTS(X) \
  X(f32, float, 64, 64, 2, 2)           \
  X(f32, float, 32, 64, 1, 2)           \
  X(f16, half, 64, 64, 2, 2)            \
  X(f16, half, 32, 64, 1, 2)            \
  X(bf16, bfloat, 64, 64, 2, 2)         \
  X(bf16, bfloat, 32, 64, 1, 2)

// X(dtype, Metal type, bm, bn, bk, packs): a simdgroup each for `packs` products of a batch, named
// matmul_packed_<dtype>_bm<bm>_bn<bn>_bk<bk>
#define MATMUL_PACKED_VARIANTS(X) \
  X(f32, float, 16, 16, 16, 8)    \
  X(f16, half, 16, 16, 16, 8)     \
  X(bf16, bfloat, 16, 16, 16, 8)

// X(dtype, Metal type, rows, products): up to `rows` rows of a, named matmul_skinny_k_<dtype>_r<rows>_p<products>
#define MATMUL_SKINNY_K_VARIANTS(X) \
  X(f32, float, 1, 1)               \
  X(f32, float, 2, 1)               \
  X(f32, float, 4, 1)               \
  X(f32, float, 1, 2)               \
  X(f32, float, 4, 2)               \
  X(f16, half, 1, 1)                \
  X(f16, half, 2, 1)                \
  X(f16, half, 4, 1)                \
  X(f16, half, 1, 2)                \
  X(f16, half, 4, 2)                \
  X(bf16, bfloat, 1, 1)             \
  X(bf16, bfloat, 2, 1)             \
  X(bf16, bfloat, 4, 1)             \
  X(bf16, bfloat, 1, 2)             \
  X(bf16, bfloat, 4, 2)

// X(dtype, Metal type, rows), named matmul_skinny_n_<dtype>_r<rows>
#define MATMUL_SKINNY_N_VARIANTS(X) \
  X(f32, float, 1)                  \
  X(f32, float, 4)                  \
  X(f16, half, 1)                   \
  X(f16, half, 4)                   \
  X(bf16, bfloat, 1)                \
  X(bf16, bfloat, 4)

// X(dtype, Metal type), named matmul_sum_<dtype>
#define MATMUL_SUM_VARIANTS(X) \
  X(f32, float)                \
  X(f16, half)                 \
  X(bf16, bfloat)

// X(dtype, Metal type), named linear_backward_<dtype>
#define LINEAR_BACKWARD_VARIANTS(X) \
  X(f32, float)                     \
  X(f16, half)                      \
  X(bf16, bfloat)

// X(dtype, Metal type), named grouped_matmul_scatter_<dtype>
#define GROUPED_MATMUL_SCATTER_VARIANTS(X) \
  X(f32, float)                            \
  X(f16, half)                             \
  X(bf16, bfloat)
