// What the rope kernels and the glue agree on.
#pragma once

#ifndef __METAL_VERSION__
#include <cstddef>
#include <cstdint>
#endif

enum rope_buffer {
  rope_buffer_q = 0,
  rope_buffer_k = 1,
  rope_buffer_cos = 2,  // in the dtype of q, or
  rope_buffer_sin = 3,
  rope_buffer_cos_f32 = 4,  // in float32
  rope_buffer_sin_f32 = 5,
  rope_buffer_positions_i32 = 6,
  rope_buffer_positions_i64 = 7,
  rope_buffer_q_out = 8,
  rope_buffer_k_out = 9,
  rope_buffer_params = 10,
  // of rope_norm alone; in its backward pass q_out and k_out are the gradients of q and k
  rope_buffer_q_weight = 11,
  rope_buffer_k_weight = 12,
  rope_buffer_grad_q = 13,  // of q_out
  rope_buffer_grad_k = 14,
  rope_buffer_partials = 15,  // float32 (parts, columns): those of q, then those of k
  rope_buffer_grad_q_weight = 16,
  rope_buffer_grad_k_weight = 17,
};

// Function constants, all bool. The ids of this family: 400 to 499.
enum rope_constant {
  rope_constant_k = 400,              // there is a k
  rope_constant_table = 401,          // cosines and sines come from a table in the dtype of q
  rope_constant_table_f32 = 402,      // ... in float32; without either they are computed
  rope_constant_positions_i32 = 403,  // positions come from a tensor of int32
  rope_constant_positions_i64 = 404,  // ... of int64; without either they count from 0
  rope_constant_interleaved = 405,    // pairs are neighbours; without, they lie half of the rotated columns apart
  rope_constant_packs = 406,          // 16 bytes of columns, from any multiple of them on, lie together and aligned
  rope_constant_table_packs = 407,    // what a thread takes of the table lies together and aligned
  // of rope_norm alone
  rope_constant_vectors = 408,      // of all tensors 4 columns, from any multiple of them on, lie together and aligned
  rope_constant_weights = 409,      // there are weights
  rope_constant_weights_f32 = 410,  // ... in float32, which q is not
  rope_constant_grad_x = 411,       // the gradients of q and k are asked for
  rope_constant_grad_weights = 412,
};

enum { rope_max_pairs = 256 };  // whose cosines are computed: their frequencies travel with the launch
enum { rope_max_sections = 4 };
enum { rope_threads = 256 };  // of a threadgroup, at most
enum { rope_norm_max_columns = 512 };
enum { rope_grid_width = 1 << 16 };    // threadgroups of rope_norm along x; y takes the rest
enum { rope_weight_columns = 32 };     // of a threadgroup of rope_norm_weights
enum { rope_weight_simdgroups = 16 };  // of the same

// How positions become rotations. Strides in elements.
struct rope_rotation {
  uint64_t frequencies[rope_max_pairs];  // of each pair, in turns per position, as a fraction of 2^64
  int64_t cos_strides[3];                // batch, row, column
  int64_t sin_strides[3];
  int64_t position_strides[3];                  // section, batch, position
  int64_t offset;                               // added to each position
  uint32_t pair_sections[rope_max_pairs / 16];  // of each pair, in 2 bits
  uint32_t pairs;                               // that are rotated; the columns behind them are copied
  uint32_t sections;                            // 0: pairs have their position in common
  uint32_t rows;                                // of the table
  float direction;                              // 1, or -1 to rotate back
};

// Strides in elements; the results are contiguous. Sizes below 2^32.
struct rope_params {
  rope_rotation rotation;
  int64_t strides[2][4];  // of q and k: batch, head, position, column
  uint32_t heads[2];      // of q and k
  uint32_t length;        // positions of a sequence
  uint32_t columns;       // of a head
  uint32_t chunks;        // of a head: what a thread handles at once
  uint32_t heads_per_thread;
};

// A unit is heads_per_unit heads of q or of k at one position, of which each of `lanes` neighbouring threads takes the
// same columns. A threadgroup has units of q alone or of k alone. Norms as in norm_params.
struct rope_norm_params {
  rope_rotation rotation;
  int64_t strides[2][4];
  int64_t grad_strides[2][4];
  int64_t weight_strides[2];
  uint32_t heads[2];
  uint32_t head_groups[2];  // units at one position, at least 1
  uint32_t units[2];        // of all positions and batches
  uint32_t parts[2];        // threadgroups of q, and those of k that follow
  uint32_t length;
  uint32_t columns;
  uint32_t lanes;  // a power of 2
  uint32_t heads_per_unit;
  float weight_offset;
  float scale;
  float scale_large;
  float eps;
  float eps_large;
  uint32_t padding;
};

struct rope_weights_params {
  uint32_t parts[2];  // of q and k
  uint32_t columns;
};

static_assert(sizeof(rope_rotation) == 2208, "no implicit padding");
static_assert(sizeof(rope_params) == 2208 + 88, "no implicit padding");
static_assert(sizeof(rope_norm_params) == 2208 + 144 + 72, "no implicit padding");
static_assert(sizeof(rope_weights_params) == 12, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(rope_rotation, cos_strides) == 2048);
static_assert(offsetof(rope_rotation, offset) == 2120);
static_assert(offsetof(rope_rotation, pair_sections) == 2128);
static_assert(offsetof(rope_rotation, direction) == 2204);
static_assert(offsetof(rope_params, strides) == 2208);
static_assert(offsetof(rope_params, heads) == 2272);
static_assert(offsetof(rope_norm_params, weight_strides) == 2336);
static_assert(offsetof(rope_norm_params, heads) == 2352);
static_assert(offsetof(rope_norm_params, weight_offset) == 2400);
#endif
