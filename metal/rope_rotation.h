// What the rope kernels share: the rotations of a few pairs at one position. Sections of pairs with positions of their
// own: Qwen2-VL (Wang et al., 2024).
#pragma once

#include <metal_stdlib>

#include "common/pack.h"
#include "rope_params.h"

namespace mpsk {

using namespace metal;

constant bool has_k [[function_constant(rope_constant_k)]];
constant bool table [[function_constant(rope_constant_table)]];
constant bool table_f32 [[function_constant(rope_constant_table_f32)]];
constant bool positions_i32 [[function_constant(rope_constant_positions_i32)]];
constant bool positions_i64 [[function_constant(rope_constant_positions_i64)]];
constant bool interleaved [[function_constant(rope_constant_interleaved)]];
constant bool table_packs [[function_constant(rope_constant_table_packs)]];

struct rotation {
  float cos;
  float sin;
};

// Of an angle in turns, a fraction of 2^64. Its 32 leading bits are an eighth of a turn at most from a quarter; there,
// polynomials (fitted for this file, by Lawson's iteration) whose error is below 1e-8. With the rounding of the angle
// and of the result: 1.2e-7.
inline rotation rotation_of(ulong phase) {
  const uint turns = uint(phase >> 32);
  const uint quarter = (turns + 0x20000000u) >> 30;
  const float x = float(int(turns - (quarter << 30))) * 1.4629180792671596e-9f;  // 2 pi / 2^32
  const float square = x * x;
  const float s = x + x * square * (-0.16666664f + square * (0.0083327452f - square * 0.00019587360f));
  const float c =
      1.0f - 0.5f * square + square * square * (0.041666664f + square * (-0.0013888298f + square * 2.4547197e-5f));
  const float across = quarter & 1 ? s : c, along = quarter & 1 ? c : s;
  return {(quarter + 1) & 2 ? -across : across, quarter & 2 ? -along : along};
}

// What rotations are read from, or computed of; undefined, and not touched, where there is none.
template <typename T>
struct rope_table {
  const device T* cos;
  const device T* sin;
  const device float* cos_f32;
  const device float* sin_f32;
  const device int* i32;
  const device long* i64;

  long position(long at) const { return positions_i32 ? long(i32[at]) : i64[at]; }
};

// `count` entries of a row of the table, from `from` on; with table_packs, `size`.
template <typename Entry, uint size>
inline void load_entries(const device Entry* from, long stride, uint count, thread float* entries) {
  if (table_packs && size % pack_size<Entry>() == 0) {
    for (uint i = 0; i < size; i += pack_size<Entry>()) {
      const pack<Entry> p = load_pack(from + i);
      for (uint j = 0; j < pack_size<Entry>(); ++j) {
        entries[i + j] = p.values[j];
      }
    }
  } else if (table_packs) {
    const float4 four = float4(*reinterpret_cast<const device vec<Entry, 4>*>(from));
    for (uint i = 0; i < 4; ++i) {
      entries[i] = four[i];
    }
  } else {
    for (uint i = 0; i < count; ++i) {
      entries[i] = float(from[i * stride]);
    }
  }
}

// Of `count` pairs, from `pair` on, at one position of a sequence; sines have the sign of the direction. NaN where the
// table has no such row.
template <typename T, uint size>
inline void load_rotations(rope_table<T> from, constant rope_rotation& r, uint batch, uint index, uint pair, uint count,
                           thread float* cosines, thread float* sines) {
  const long at = long(batch) * r.position_strides[1] + long(index) * r.position_strides[2];
  long position = r.offset;
  if (!positions_i32 && !positions_i64) {
    position += index;
  } else if (r.sections == 0) {
    position += from.position(at);
  }
  if (table || table_f32) {
    const bool exists = position >= 0 && position < long(r.rows);
    const long row = exists ? position : 0;
    const long cos_at = long(batch) * r.cos_strides[0] + row * r.cos_strides[1] + pair * r.cos_strides[2];
    const long sin_at = long(batch) * r.sin_strides[0] + row * r.sin_strides[1] + pair * r.sin_strides[2];
    if (table) {
      load_entries<T, size>(from.cos + cos_at, r.cos_strides[2], count, cosines);
      load_entries<T, size>(from.sin + sin_at, r.sin_strides[2], count, sines);
    } else {
      load_entries<float, size>(from.cos_f32 + cos_at, r.cos_strides[2], count, cosines);
      load_entries<float, size>(from.sin_f32 + sin_at, r.sin_strides[2], count, sines);
    }
    for (uint i = 0; i < count && !exists; ++i) {
      cosines[i] = as_type<float>(0x7fc00000u);
    }
  } else {
    for (uint i = 0; i < count; ++i) {
      long of_pair = position;
      if (r.sections != 0) {
        const uint section = r.pair_sections[(pair + i) / 16] >> 2 * ((pair + i) % 16) & 3;
        of_pair += from.position(at + section * r.position_strides[0]);
      }
      const rotation turn = rotation_of(ulong(of_pair) * r.frequencies[pair + i]);
      cosines[i] = turn.cos;
      sines[i] = turn.sin;
    }
  }
  for (uint i = 0; i < count; ++i) {
    sines[i] *= r.direction;
  }
}

}  // namespace mpsk
