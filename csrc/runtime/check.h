// User-facing checks, one text for each rule. They work on symbolic sizes, so that the eager op, its fake and a traced
// call raise the same exception: ValueError for shape and value, TypeError for dtype, NotImplementedError for what is
// valid but has no kernel. `op` is the op's name without `mpsk::`.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymBool.h>
#include <c10/core/SymInt.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

namespace mpsk {

// An argument under check. `name` is the one in the schema.
struct Arg {
  const char* op;
  const char* name;
  const at::Tensor& tensor;
};

template <class... Parts>
void require_value(bool ok, const char* op, const Parts&... parts) {
  TORCH_CHECK_VALUE(ok, "mpsk::", op, ": ", parts...);
}
template <class... Parts>
void require_value(const c10::SymBool& ok, const char* op, const Parts&... parts) {
  require_value(ok.expect_true(__FILE__, __LINE__), op, parts...);
}
template <class... Parts>
void require_type(bool ok, const char* op, const Parts&... parts) {
  TORCH_CHECK_TYPE(ok, "mpsk::", op, ": ", parts...);
}
template <class... Parts>
void require_supported(bool ok, const char* op, const Parts&... parts) {
  TORCH_CHECK_NOT_IMPLEMENTED(ok, "mpsk::", op, ": ", parts...);
}

// A dense tensor, and not None, on mps; on meta as well, from which only a fake can compute.
void check_device(const Arg& arg);
void check_device(const Arg& arg, const Arg& like);  // and where `like` is
// A float dtype that kernels exist for: float32, float16 or bfloat16.
void check_dtype(const Arg& arg);
void check_same_dtype(const Arg& arg, const Arg& like);
void check_dim(const Arg& arg, int64_t dim);
void check_dim_between(const Arg& arg, int64_t least, int64_t most);
// arg.size(dim) == size, where `reason` says what for: "to match x.size(-1)".
void check_size(const Arg& arg, int64_t dim, const c10::SymInt& size, const std::string& reason);

// Whether a float of the schema, which has 64 bits, is a number in the kernels' 32.
inline bool finite_f32(double value) { return std::abs(value) <= std::numeric_limits<float>::max(); }

// The dtype as torch spells it, and as kernels' names do: f32, f16 or bf16.
std::string_view dtype_name(const at::Tensor& tensor);
std::string_view dtype_suffix(const at::Tensor& tensor);

// A size or stride in a params struct. `field` names it for the user: "x.size(-1)".
template <class To>
To narrow(int64_t value, const char* op, const char* field) {
  require_value(std::in_range<To>(value), op, "expected ", field, " <= ", std::numeric_limits<To>::max(), ", got ",
                value);
  return static_cast<To>(value);
}

}  // namespace mpsk
