// What the files of the norms share.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "norm_params.h"
#include "runtime/runtime.h"

namespace mpsk {

inline constexpr int64_t simd_width = 32;
inline constexpr int64_t threads_per_threadgroup = norm_shared_threads;  // what rows of fewer threads are gathered to

using OptionalTensor = std::optional<at::Tensor>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_f32_beside(const at::Tensor& x, const OptionalTensor& a, const OptionalTensor& b) {
  const OptionalTensor& tensor = a ? a : b;
  return tensor && tensor->scalar_type() != x.scalar_type();
}

inline at::Tensor none_like(const at::Tensor& tensor) { return at::empty({0}, tensor.options()); }

inline void bind_if(Encoder& encoder, unsigned index, const OptionalTensor& tensor) {
  if (tensor) encoder.tensor(index, *tensor);
}

// In which scale the kernels take squares, so that none leaves the range of float32; see norm_params.
struct norm_scales {
  norm_scales(const at::Tensor& x, double eps_, int64_t columns)
      : eps(std::max<double>(static_cast<float>(eps_), std::numeric_limits<float>::min())) {
    if (x.scalar_type() == at::kHalf) return;  // its squares never do
    // A small eps shows in rows of small numbers, whose squares must not vanish either.
    const bool small = eps < std::ldexp(1.0, -100);
    usual = small ? std::ldexp(1.0, 14) : 1.0;
    threshold = static_cast<float>(std::ldexp(1.0, small ? 17 : 31));
    // As many squares of twice the largest number as there are columns stay within the range.
    large = std::ldexp(1.0, -66 - std::ilogb(static_cast<double>(columns)) / 2 - 1);
  }
  float eps_times(double scale) const {
    return static_cast<float>(std::max<double>(eps * scale * scale, std::numeric_limits<float>::min()));
  }

  double eps;
  double usual = 1.0;
  double large = 1.0;
  float threshold = 0x1p31f;  // norm_params.large
};

}  // namespace mpsk
