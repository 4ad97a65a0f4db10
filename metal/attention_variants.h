// Every attention kernel there is: X(dtype, Metal type, d, bk), named attention_flash_<dtype>_d<d>_bk<bk>.
// bk halves at d128, where 32 keys and values of fp32 would fill 33 KB of threadgroup memory.
#pragma once

#define ATTENTION_FLASH_VARIANTS(X) \
  X(f32, float, 32, 32)             \
  X(f32, float, 64, 32)             \
  X(f32, float, 80, 32)             \
  X(f32, float, 96, 32)             \
  X(f32, float, 128, 16)            \
  X(f16, half, 32, 32)              \
  X(f16, half, 64, 32)              \
  X(f16, half, 80, 32)              \
  X(f16, half, 96, 32)              \
  X(f16, half, 128, 16)             \
  X(bf16, bfloat, 32, 32)           \
  X(bf16, bfloat, 64, 32)           \
  X(bf16, bfloat, 80, 32)           \
  X(bf16, bfloat, 96, 32)           \
  X(bf16, bfloat, 128, 16)
