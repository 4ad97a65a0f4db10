// Every matmul kernel there is: X(dtype, Metal type, bm, bn, bk), named matmul_tile_<dtype>_bm<bm>_bn<bn>_bk<bk>.
#pragma once

#define MATMUL_TILE_VARIANTS(X) \
  X(f32, float, 64, 64, 16)     \
  X(f32, float, 32, 32, 32)     \
  X(f16, half, 64, 64, 16)      \
  X(f16, half, 32, 32, 32)      \
  X(bf16, bfloat, 64, 64, 16)   \
  X(bf16, bfloat, 32, 32, 32)
