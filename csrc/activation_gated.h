// The gradients of gated units, for the families that have some.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "common/activation_kinds.h"

namespace mpsk {

// Those of gate and of up, of out = activation(gate) * up, all of one shape; or of a packed gate, and nothing.
std::tuple<at::Tensor, at::Tensor> launch_gated_backward(const char* op, activation_kind kind, const at::Tensor& grad,
                                                         const at::Tensor& gate, const std::optional<at::Tensor>& up);

}  // namespace mpsk
