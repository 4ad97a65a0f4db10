// Every loss kernel there is.
#pragma once

// X(dtype, Metal type), named cross_entropy_rows_<dtype>
#define CROSS_ENTROPY_ROWS_VARIANTS(X) \
  X(f32, float)                        \
  X(f16, half)                         \
  X(bf16, bfloat)

// X(dtype, Metal type) of the targets, named cross_entropy_count_<dtype>
#define CROSS_ENTROPY_COUNT_VARIANTS(X) \
  X(i32, int)                           \
  X(i64, long)

// named cross_entropy_sum_<dtype>
#define CROSS_ENTROPY_SUM_VARIANTS(X) X(f32, float)

// named loss_copy_<dtype>
#define LOSS_COPY_VARIANTS(X) \
  X(f32, float)               \
  X(f16, half)                \
  X(bf16, bfloat)
