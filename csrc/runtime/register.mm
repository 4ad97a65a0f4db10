#include "runtime/register.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <c10/util/Exception.h>

namespace mpsk {
namespace {

bool needs_gradient(const c10::IValue& value) {
  if (value.isTensor()) return value.toTensor().requires_grad();
  if (!value.isList()) return false;
  for (const c10::IValue& element : value.toListRef()) {
    if (needs_gradient(element)) return true;
  }
  return false;
}

}  // namespace

void refuse_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  if (at::GradMode::is_enabled()) {
    const auto& arguments = op.schema().arguments();
    const auto values = torch::jit::last(*stack, arguments.size());
    for (size_t i = 0; i < arguments.size(); ++i) {
      TORCH_CHECK_NOT_IMPLEMENTED(!needs_gradient(values[i]), op.schema().name(), ": no gradient for ",
                                  arguments[i].name(),
                                  ", which requires grad; call under torch.no_grad() or pass it detached");
    }
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

}  // namespace mpsk
