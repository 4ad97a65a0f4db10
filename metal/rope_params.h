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
  rope_constant_table_packs = 407,    // the same of the table
};

enum { rope_max_pairs = 256 };  // whose cosines are computed: their frequencies travel with the launch
enum { rope_max_sections = 4 };
enum { rope_threads = 256 };  // of a threadgroup, at most

// Strides in elements; the results are contiguous. Sizes below 2^32.
struct rope_params {
  uint64_t frequencies[rope_max_pairs];  // of each pair, in turns per position, as a fraction of 2^64
  int64_t strides[2][4];                 // of q and k: batch, head, position, column
  int64_t cos_strides[3];                // batch, row, column
  int64_t sin_strides[3];
  int64_t position_strides[3];  // section, batch, position
  int64_t offset;               // added to each position
  uint32_t heads[2];            // of q and k
  uint32_t length;              // positions of a sequence
  uint32_t columns;             // of a head
  uint32_t pairs;               // that are rotated; the columns behind them are copied
  uint32_t chunks;              // of a head: what a thread handles at once
  uint32_t heads_per_thread;
  uint32_t rows;  // of the table
  uint32_t sections;
  uint32_t section_ends[rope_max_sections];  // pairs before the end of each
  float direction;                           // 1, or -1 to rotate back
};

static_assert(sizeof(rope_params) == 2248, "no implicit padding");
#ifndef __METAL_VERSION__
static_assert(offsetof(rope_params, strides) == 2048);
static_assert(offsetof(rope_params, offset) == 2184);
static_assert(offsetof(rope_params, heads) == 2192);
static_assert(offsetof(rope_params, direction) == 2244);
#endif
