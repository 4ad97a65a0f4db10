// mpsk::swiglu, geglu and reglu, and their backward ops: any strides, read where they are; packed halves without a
// copy.
#include <ATen/ops/empty.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "activation_gated.h"
#include "activation_params.h"
#include "activation_select.h"
#include "runtime/check.h"
#include "runtime/register.h"
#include "runtime/runtime.h"
#include "runtime/strides.h"

namespace mpsk {
namespace {

using Optional = std::optional<at::Tensor>;
// Of gate and of up; of a packed gate, and nothing.
using Gradients = std::tuple<at::Tensor, at::Tensor>;

// An operand of a kernel: a tensor, from an element of it on, with these strides.
struct Operand {
  const at::Tensor* tensor;
  std::vector<int64_t> strides;
  int64_t offset = 0;
};

Operand whole(const at::Tensor& tensor) { return {&tensor, tensor.strides().vec()}; }

// The first or second half of the last dimension.
Operand half(const at::Tensor& tensor, int64_t which) {
  return {&tensor, tensor.strides().vec(), which * (tensor.size(-1) / 2) * tensor.stride(-1)};
}

std::vector<int64_t> out_sizes(const at::Tensor& gate, const Optional& up) {
  std::vector<int64_t> sizes = gate.sizes().vec();
  if (!up) sizes.back() /= 2;
  return sizes;
}

// `operands` in the order of their buffers; those of the forward pass, or all.
void encode(const char* op, const char* pass, activation_kind kind, at::IntArrayRef sizes,
            const std::vector<Operand>& operands) {
  const at::Tensor& like = *operands[0].tensor;
  const Operand& last = operands.back();
  const auto at = [&](size_t o) -> const Operand& { return o < operands.size() ? operands[o] : last; };
  const Dims dims = merged_dims(sizes, {at(0).strides, at(1).strides, at(2).strides, at(3).strides, at(4).strides});
  require_supported(dims.sizes.size() <= activation_max_dims, op, "expected at most ", +activation_max_dims,
                    " dimensions that no single stride describes, got ", dims.sizes.size());
  gated_params params{};
  params.count = 1;
  for (size_t d = 0; d < dims.sizes.size(); ++d) {
    params.count *= static_cast<uint64_t>(dims.sizes[d]);
    if (d > 0) params.sizes[d] = static_cast<uint32_t>(dims.sizes[d]);  // which merged_dims keeps below 2^32
  }
  params.columns = static_cast<uint64_t>(dims.sizes[0]);
  params.dims = static_cast<uint32_t>(dims.sizes.size());
  const int64_t pack = 16 / like.element_size();
  bool packs = true;
  for (size_t o = 0; o < operands.size(); ++o) {
    std::ranges::copy(dims.strides[o], params.strides[o]);
    params.offsets[o] = operands[o].offset;
    packs = packs && in_packs(dims, o, operands[o].tensor->storage_offset() + operands[o].offset, pack);
  }
  auto kernel = pipeline(c10::str("gated_", pass, "_", dtype_suffix(like)),
                         {{activation_constant_relu, "relu", kind == activation_relu},
                          {activation_constant_silu, "silu", kind == activation_silu},
                          {activation_constant_gelu, "gelu", kind == activation_gelu},
                          {activation_constant_gelu_tanh, "gelu_tanh", kind == activation_gelu_tanh},
                          {activation_constant_packs, "packs", packs}});
  const size_t each = static_cast<size_t>(activation_threads * pack);
  const size_t groups = (params.count + each - 1) / each;
  const size_t width = std::min<size_t>(groups, activation_grid_width);
  launch(op, [&](Encoder& encoder) {
    encoder.use(kernel);
    for (unsigned o = 0; o < operands.size(); ++o) encoder.tensor(o, *operands[o].tensor);
    encoder.params(activation_buffer_params, params);
    encoder.dispatch({.x = width, .y = (groups + width - 1) / width}, {.x = activation_threads});
  });
}

}  // namespace

void check_gated(std::string_view op_name, const at::Tensor& gate, const Optional& up, std::string_view approximate) {
  const std::string name(op_name);
  const char* op = name.c_str();
  const Arg gate_arg{op, "gate", gate};
  check_device(gate_arg);
  check_dtype(gate_arg);
  check_dim_between(gate_arg, up ? 0 : 1, 64);
  if (up) {
    const Arg up_arg{op, "up", *up};
    check_device(up_arg, gate_arg);
    check_same_dtype(up_arg, gate_arg);
    check_dim(up_arg, gate.dim());
    for (int64_t d = 0; d < gate.dim(); ++d) check_size(up_arg, d, gate.sym_size(d), "to match gate");
  } else {
    const c10::SymInt columns = gate.sym_size(-1);
    require_value((columns % 2).sym_eq(0), op, "expected an even gate.size(-1) where there is no up, got ", columns);
  }
  require_value(choose_activation(op_name.substr(0, op_name.find('_')), approximate), op,
                "expected approximate to be \"none\" or \"tanh\", got \"", approximate, "\"");
}

void check_gated_backward(std::string_view op_name, const at::Tensor& grad, const at::Tensor& gate, const Optional& up,
                          std::string_view approximate) {
  const std::string name(op_name);
  const char* op = name.c_str();
  check_gated(op_name, gate, up, approximate);
  const Arg grad_arg{op, "grad", grad}, gate_arg{op, "gate", gate};
  check_device(grad_arg, gate_arg);
  check_same_dtype(grad_arg, gate_arg);
  check_dim(grad_arg, gate.dim());
  for (int64_t d = 0; d < gate.dim(); ++d) {
    const bool halved = !up && d == gate.dim() - 1;
    check_size(grad_arg, d, halved ? gate.sym_size(d) / 2 : gate.sym_size(d), "to match gate");
  }
}

std::tuple<at::Tensor, at::Tensor> launch_gated_backward(const char* op, activation_kind kind, const at::Tensor& grad,
                                                         const at::Tensor& gate, const std::optional<at::Tensor>& up) {
  at::Tensor of_gate = at::empty(gate.sizes(), gate.options());
  at::Tensor of_up = at::empty(up ? up->sizes() : at::IntArrayRef{0}, gate.options());
  if (grad.numel() == 0) return {of_gate, of_up};
  encode(op, "backward", kind, grad.sizes(),
         {up ? whole(gate) : half(gate, 0), up ? whole(*up) : half(gate, 1), whole(grad),
          up ? whole(of_gate) : half(of_gate, 0), up ? whole(of_up) : half(of_gate, 1)});
  return {of_gate, of_up};
}

namespace {

at::Tensor gated(const char* op, const at::Tensor& gate, const Optional& up, std::string_view approximate) {
  check_gated(op, gate, up, approximate);
  const std::vector<int64_t> sizes = out_sizes(gate, up);
  at::Tensor out = at::empty(sizes, gate.options());
  if (out.numel() == 0) return out;
  encode(op, "forward", choose_activation(op, approximate)->kind, sizes,
         {up ? whole(gate) : half(gate, 0), up ? whole(*up) : half(gate, 1), whole(out)});
  return out;
}

Gradients gated_backward(const char* op, const at::Tensor& grad, const at::Tensor& gate, const Optional& up,
                         std::string_view approximate) {
  check_gated_backward(op, grad, gate, up, approximate);
  const std::string_view name = op;
  return launch_gated_backward(op, choose_activation(name.substr(0, name.find('_')), approximate)->kind, grad, gate,
                               up);
}

at::Tensor swiglu(const at::Tensor& gate, const Optional& up) { return gated("swiglu", gate, up, "none"); }
at::Tensor reglu(const at::Tensor& gate, const Optional& up) { return gated("reglu", gate, up, "none"); }
at::Tensor geglu(const at::Tensor& gate, const Optional& up, c10::string_view approximate) {
  return gated("geglu", gate, up, approximate);
}
Gradients swiglu_backward(const at::Tensor& grad, const at::Tensor& gate, const Optional& up) {
  return gated_backward("swiglu_backward", grad, gate, up, "none");
}
Gradients reglu_backward(const at::Tensor& grad, const at::Tensor& gate, const Optional& up) {
  return gated_backward("reglu_backward", grad, gate, up, "none");
}
Gradients geglu_backward(const at::Tensor& grad, const at::Tensor& gate, const Optional& up,
                         c10::string_view approximate) {
  return gated_backward("geglu_backward", grad, gate, up, approximate);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(MPSK_NAMESPACE, m) {
  define_op(m, "swiglu(Tensor gate, Tensor? up=None) -> Tensor", swiglu, Gradient::registered);
  define_op(m, "geglu(Tensor gate, Tensor? up=None, *, str approximate=\"none\") -> Tensor", geglu,
            Gradient::registered);
  define_op(m, "reglu(Tensor gate, Tensor? up=None) -> Tensor", reglu, Gradient::registered);
  define_op(m, "swiglu_backward(Tensor grad, Tensor gate, Tensor? up) -> (Tensor, Tensor)", swiglu_backward);
  define_op(m, "geglu_backward(Tensor grad, Tensor gate, Tensor? up, *, str approximate=\"none\") -> (Tensor, Tensor)",
            geglu_backward);
  define_op(m, "reglu_backward(Tensor grad, Tensor gate, Tensor? up) -> (Tensor, Tensor)", reglu_backward);
}

}  // namespace mpsk
