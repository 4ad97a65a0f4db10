// What the attention kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

enum attention_buffer {
  attention_buffer_q = 0,
  attention_buffer_k = 1,
  attention_buffer_v = 2,
  attention_buffer_out = 3,
  attention_buffer_params = 4,
};

// Function constants, all bool. The ids of this family: 200 to 299.
enum attention_constant {
  attention_constant_causal = 200,
  attention_constant_vectors = 201,  // stride 1 along the head dimension, all else of q, k and v 16-byte aligned
};

enum { attention_block_q = 32 };  // queries of a threadgroup

struct attention_strides {  // in elements
  int64_t batch;
  int64_t head;
  int64_t row;
  int64_t column;
};

struct attention_params {
  attention_strides q;
  attention_strides k;
  attention_strides v;
  uint64_t q_length;
  uint64_t k_length;
  uint32_t q_heads_per_k_head;
  float scale_log4;  // scale * log2(e) / 2: a score is kept as the logarithm, to base 4, of its exponential
};

static_assert(sizeof(attention_params) == 120, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(attention_params, k) == 32);
static_assert(offsetof(attention_params, v) == 64);
static_assert(offsetof(attention_params, q_length) == 96);
static_assert(offsetof(attention_params, q_heads_per_k_head) == 112);
static_assert(offsetof(attention_params, scale_log4) == 116);
#endif
