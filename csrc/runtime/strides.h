// How tensors of one shape lie in memory, for the params of kernels that read any strides.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <initializer_list>
#include <limits>

namespace mpsk {

// Dimensions, innermost first, each with its stride in every operand.
struct Dims {
  c10::SmallVector<int64_t, 8> sizes;
  c10::SmallVector<c10::SmallVector<int64_t, 8>, 5> strides;  // of operand, of dimension
};

// The dimensions of `sizes` without those of size 1, neighbours merged that one stride describes in every operand. At
// least one remains. All but the innermost stay below 2^32; without `merge_innermost` the last of `sizes` stays alone.
inline Dims merged_dims(at::IntArrayRef sizes, std::initializer_list<at::IntArrayRef> operands,
                        bool merge_innermost = true) {
  Dims dims;
  dims.strides.resize(operands.size());
  const auto add = [&](int64_t size, int64_t d) {
    dims.sizes.push_back(size);
    size_t o = 0;
    for (at::IntArrayRef strides : operands) dims.strides[o++].push_back(d < 0 ? 1 : strides[d]);
  };
  const auto continues = [&](int64_t d) {
    size_t o = 0;
    for (at::IntArrayRef strides : operands) {
      if (strides[d] != dims.strides[o++].back() * dims.sizes.back()) return false;
    }
    return true;
  };
  constexpr int64_t most = std::numeric_limits<uint32_t>::max();
  for (int64_t d = static_cast<int64_t>(sizes.size()) - 1; d >= 0; --d) {
    const bool innermost = !merge_innermost && d == static_cast<int64_t>(sizes.size()) - 1;
    if (sizes[d] == 1 && !innermost) continue;
    const bool first = dims.sizes.size() <= 1;
    const bool fits = first || (!dims.sizes.empty() && dims.sizes.back() <= most / sizes[d]);
    if (!dims.sizes.empty() && (merge_innermost || !first) && fits && continues(d)) {
      dims.sizes.back() *= sizes[d];
    } else {
      add(sizes[d], d);
    }
  }
  if (dims.sizes.empty()) add(1, -1);
  return dims;
}

// Whether any `pack` elements from a multiple of `pack` on lie together and aligned in operand `o`, which starts at
// element `offset` of its storage.
inline bool in_packs(const Dims& dims, size_t o, int64_t offset, int64_t pack) {
  if (dims.strides[o][0] != 1 || offset % pack != 0) return false;
  if (dims.sizes.size() > 1 && dims.sizes[0] % pack != 0) return false;
  for (size_t d = 1; d < dims.sizes.size(); ++d) {
    if (dims.strides[o][d] % pack != 0) return false;
  }
  return true;
}

// What a grid of more threadgroups than one dimension takes is made of: y takes what x does not. Keeps the count of
// threads along x below 2^32.
inline constexpr int64_t grid_width = 1 << 16;

}  // namespace mpsk
