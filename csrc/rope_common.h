// What the files of the rotary embeddings share: which rotations a call asks for.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "rope_params.h"
#include "runtime/runtime.h"

namespace mpsk {

using OptionalTensor = std::optional<at::Tensor>;

struct Rope {
  const char* op;
  const at::Tensor& q;
  const OptionalTensor& k;
  const OptionalTensor& cos;
  const OptionalTensor& sin;
  const OptionalTensor& positions;
  const c10::SymInt& offset;
  double base;
  std::optional<int64_t> dims;
  bool interleaved;
  at::IntArrayRef sections;
  bool interleaved_sections;
};

void check(const Rope& rope);

int64_t pairs_of(const Rope& rope);
rope_rotation rotation_of(const Rope& rope, bool inverse);

// Function constants and buffers.
bool has_table(const Rope& rope);      // in the dtype of q
bool has_table_f32(const Rope& rope);  // or in float32, where q is not
bool has_positions(const Rope& rope, at::ScalarType type);
bool table_in_packs(const Rope& rope, int64_t pack);
void bind_rotations(Encoder& encoder, const Rope& rope);

// Whether any `pack` columns from a multiple of `pack` on lie together and aligned.
bool in_packs(const at::Tensor& tensor, int64_t pack);

// The strides of the last dimensions, 0 where there is none or its size is 1.
template <size_t count>
void set_strides(int64_t (&strides)[count], const at::Tensor& tensor) {
  for (int64_t d = 1; d <= static_cast<int64_t>(count); ++d) {
    strides[count - static_cast<size_t>(d)] = d > tensor.dim() || tensor.size(-d) == 1 ? 0 : tensor.stride(-d);
  }
}

}  // namespace mpsk
