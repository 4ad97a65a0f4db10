#include "runtime/check.h"

#include <c10/core/ScalarType.h>

namespace mpsk {
namespace {

struct Dtype {
  at::ScalarType type;
  std::string_view suffix;  // in kernels' names
};
constexpr Dtype dtypes[] = {
    {at::kFloat, "f32"},
    {at::kHalf, "f16"},
    {at::kBFloat16, "bf16"},
};

const Dtype* find(const at::Tensor& tensor) {
  for (const Dtype& dtype : dtypes) {
    if (dtype.type == tensor.scalar_type()) return &dtype;
  }
  return nullptr;
}

}  // namespace

void check_device(const Arg& arg) {
  require_type(arg.tensor.defined(), arg.op, "expected ", arg.name, " to be a tensor, got None");
  require_supported(!arg.tensor.is_nested(), arg.op, "expected ", arg.name, " to be a dense tensor, got a nested one");
  require_supported(arg.tensor.layout() == at::kStrided, arg.op, "expected ", arg.name,
                    " to be a dense tensor, got one of layout ", arg.tensor.layout(), "; pass ", arg.name,
                    ".to_dense()");
  const at::Device device = arg.tensor.device();
  require_value(device.is_mps() || device.is_meta(), arg.op, "expected ", arg.name, " on device mps, got ",
                device.str(), "; move it with ", arg.name, ".to(\"mps\")");
}

void check_device(const Arg& arg, const Arg& like) {
  check_device(arg);
  const at::DeviceType type = arg.tensor.device().type(), expected = like.tensor.device().type();
  require_value(type == expected, arg.op, "expected ", arg.name, " on device ",
                c10::DeviceTypeName(expected, /*lower_case=*/true), " to match ", like.name, ", got ",
                c10::DeviceTypeName(type, /*lower_case=*/true));
}

void check_dtype(const Arg& arg) {
  require_type(find(arg.tensor), arg.op, "expected ", arg.name, " of dtype float32, float16 or bfloat16, got ",
               dtype_name(arg.tensor));
}

void check_same_dtype(const Arg& arg, const Arg& like) {
  require_type(arg.tensor.scalar_type() == like.tensor.scalar_type(), arg.op, "expected ", arg.name, " of dtype ",
               dtype_name(like.tensor), " to match ", like.name, ", got ", dtype_name(arg.tensor));
}

void check_dim(const Arg& arg, int64_t dim) {
  const int64_t got = arg.tensor.dim();
  require_value(got == dim, arg.op, "expected ", arg.name, ".dim() == ", dim, ", got ", got);
}

void check_dim_between(const Arg& arg, int64_t least, int64_t most) {
  const int64_t got = arg.tensor.dim();
  require_value(got >= least, arg.op, "expected ", arg.name, ".dim() >= ", least, ", got ", got);
  require_value(got <= most, arg.op, "expected ", arg.name, ".dim() <= ", most, ", got ", got);
}

void check_size(const Arg& arg, int64_t dim, const c10::SymInt& size, const std::string& reason) {
  const c10::SymInt got = arg.tensor.sym_size(dim);
  require_value(got.sym_eq(size), arg.op, "expected ", arg.name, ".size(", dim, ") == ", size, " ", reason, ", got ",
                got);
}

std::string_view dtype_name(const at::Tensor& tensor) { return c10::getDtypeNames(tensor.scalar_type()).first; }

std::string_view dtype_suffix(const at::Tensor& tensor) {
  const Dtype* dtype = find(tensor);
  TORCH_CHECK(dtype, "mpsk: no kernels for dtype ", dtype_name(tensor));
  return dtype->suffix;
}

}  // namespace mpsk
