// Every norm kernel there is. A row kernel keeps up to `columns` columns in the registers of up to `threads` threads.
#pragma once

// X(dtype, Metal type, columns, threads), named norm_row_<dtype>_d<columns>
#define NORM_ROW_VARIANTS(X) \
  X(f32, float, 1024, 256)   \
  X(f32, float, 8192, 512)   \
  X(f32, float, 16384, 1024) \
  X(f16, half, 1024, 256)    \
  X(f16, half, 8192, 512)    \
  X(f16, half, 16384, 1024)  \
  X(bf16, bfloat, 1024, 256) \
  X(bf16, bfloat, 8192, 512) \
  X(bf16, bfloat, 16384, 1024)

// X(dtype, Metal type), named norm_loop_<dtype>
#define NORM_LOOP_VARIANTS(X) \
  X(f32, float)               \
  X(f16, half)                \
  X(bf16, bfloat)

// X(dtype, Metal type, columns, threads), named norm_backward_row_<dtype>_d<columns>
#define NORM_BACKWARD_ROW_VARIANTS(X) \
  X(f32, float, 4096, 1024)           \
  X(f32, float, 8192, 1024)           \
  X(f32, float, 16384, 1024)          \
  X(f16, half, 4096, 1024)            \
  X(f16, half, 8192, 1024)            \
  X(f16, half, 16384, 1024)           \
  X(bf16, bfloat, 4096, 1024)         \
  X(bf16, bfloat, 8192, 1024)         \
  X(bf16, bfloat, 16384, 1024)

// X(dtype, Metal type), named norm_backward_loop_<dtype>
#define NORM_BACKWARD_LOOP_VARIANTS(X) \
  X(f32, float)                        \
  X(f16, half)                         \
  X(bf16, bfloat)

// X(dtype, Metal type), named norm_parameters_<dtype>
#define NORM_PARAMETERS_VARIANTS(X) \
  X(f32, float)                     \
  X(f16, half)                      \
  X(bf16, bfloat)

// X(dtype, Metal type), named norm_group_part_<dtype>
#define NORM_GROUP_PART_VARIANTS(X) \
  X(f32, float)                     \
  X(f16, half)                      \
  X(bf16, bfloat)

// X(), named norm_group_merge
// clang-format off
#define NORM_GROUP_MERGE_VARIANTS(X) \
  X()
// clang-format on

// X(dtype, Metal type), named norm_group_sums_<dtype>
#define NORM_GROUP_SUMS_VARIANTS(X) \
  X(f32, float)                     \
  X(f16, half)                      \
  X(bf16, bfloat)

// X(dtype, Metal type), named norm_group_grad_<dtype>
#define NORM_GROUP_GRAD_VARIANTS(X) \
  X(f32, float)                     \
  X(f16, half)                      \
  X(bf16, bfloat)
