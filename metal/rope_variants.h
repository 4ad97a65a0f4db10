// Every rope kernel there is.
#pragma once

// X(dtype, Metal type), named rope_rotate_<dtype>
#define ROPE_ROTATE_VARIANTS(X) \
  X(f32, float)                 \
  X(f16, half)                  \
  X(bf16, bfloat)

// X(dtype, Metal type, columns, quads), named rope_norm_rows_<dtype>_d<columns>: a thread holds `quads` times four
// pairs, or four columns that are not turned. That is at least `columns` for 32 threads, twice that where all are
// turned.
#define ROPE_NORM_ROWS_VARIANTS(X) \
  X(f32, float, 128, 1)            \
  X(f32, float, 256, 2)            \
  X(f32, float, 512, 5)            \
  X(f16, half, 128, 1)             \
  X(f16, half, 256, 2)             \
  X(f16, half, 512, 5)             \
  X(bf16, bfloat, 128, 1)          \
  X(bf16, bfloat, 256, 2)          \
  X(bf16, bfloat, 512, 5)

// The same, named rope_norm_backward_<dtype>_d<columns>
#define ROPE_NORM_BACKWARD_VARIANTS(X) \
  X(f32, float, 128, 1)                \
  X(f32, float, 256, 2)                \
  X(f32, float, 512, 5)                \
  X(f16, half, 128, 1)                 \
  X(f16, half, 256, 2)                 \
  X(f16, half, 512, 5)                 \
  X(bf16, bfloat, 128, 1)              \
  X(bf16, bfloat, 256, 2)              \
  X(bf16, bfloat, 512, 5)

// X(dtype, Metal type), named rope_norm_weights_<dtype>, of the weights
#define ROPE_NORM_WEIGHTS_VARIANTS(X) \
  X(f32, float)                       \
  X(f16, half)                        \
  X(bf16, bfloat)
