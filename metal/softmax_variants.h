// Every softmax kernel there is. A row kernel keeps `columns` columns for each thread in registers, in packs of 16
// bytes.
#pragma once

// X(dtype, Metal type, columns), named softmax_row_<dtype>_c<columns>
#define SOFTMAX_ROW_VARIANTS(X) \
  X(f32, float, 4)              \
  X(f32, float, 16)             \
  X(f16, half, 8)               \
  X(f16, half, 16)              \
  X(bf16, bfloat, 8)            \
  X(bf16, bfloat, 16)

// named softmax_backward_row_<dtype>_c<columns>
#define SOFTMAX_BACKWARD_ROW_VARIANTS(X) \
  X(f32, float, 4)                       \
  X(f32, float, 16)                      \
  X(f16, half, 8)                        \
  X(f16, half, 16)                       \
  X(bf16, bfloat, 8)                     \
  X(bf16, bfloat, 16)

// X(dtype, Metal type), named softmax_loop_<dtype>
#define SOFTMAX_LOOP_VARIANTS(X) \
  X(f32, float)                  \
  X(f16, half)                   \
  X(bf16, bfloat)

// named softmax_backward_loop_<dtype>
#define SOFTMAX_BACKWARD_LOOP_VARIANTS(X) \
  X(f32, float)                           \
  X(f16, half)                            \
  X(bf16, bfloat)
