#include "runtime/register.h"

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <c10/core/AutogradState.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace mpsk {
namespace {

// Whether `holds` for the value, or for an element of the list that it is.
template <class Predicate>
bool any_tensor(const c10::IValue& value, const Predicate& holds) {
  if (value.isTensor()) return value.toTensor().defined() && holds(value.toTensor());
  if (!value.isList()) return false;
  for (const c10::IValue& element : value.toListRef()) {
    if (any_tensor(element, holds)) return true;
  }
  return false;
}

void refuse(const c10::OperatorHandle& op, const torch::jit::Stack& stack, bool backward) {
  const bool forward = c10::AutogradState::get_tls_state().get_fw_grad_mode();  // which no_grad leaves as it is
  const auto& arguments = op.schema().arguments();
  const auto values = torch::jit::last(stack, arguments.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    TORCH_CHECK_NOT_IMPLEMENTED(
        !backward || !any_tensor(values[i], [](const at::Tensor& t) { return t.requires_grad(); }), op.schema().name(),
        ": no gradient for ", arguments[i].name(),
        ", which requires grad; call under torch.no_grad() or pass it detached");
    TORCH_CHECK_NOT_IMPLEMENTED(
        !forward || !any_tensor(values[i], [](const at::Tensor& t) { return t._fw_grad(/*level=*/0).defined(); }),
        op.schema().name(), ": no forward-mode gradient for ", arguments[i].name(),
        ", which has a tangent; pass its primal, of torch.autograd.forward_ad.unpack_dual");
  }
}

}  // namespace

void refuse_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  refuse(op, *stack, at::GradMode::is_enabled());
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
}

void refuse_tangents(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  refuse(op, *stack, /*backward=*/false);
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
}

void save_for_gradient(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto values = torch::jit::last(*stack, op.schema().arguments().size());
  const bool needed = at::GradMode::is_enabled() && std::ranges::any_of(values, [](const c10::IValue& value) {
                        return any_tensor(value, [](const at::Tensor& t) { return t.requires_grad(); });
                      });
  if (!needed) {
    op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
    return;
  }
  refuse(op, *stack, /*backward=*/false);
  const auto saving = c10::Dispatcher::singleton().findSchemaOrThrow((op.schema().name() + "_saving").c_str(), "");
  saving.callBoxed(stack);
  torch::jit::drop(*stack, saving.schema().returns().size() - op.schema().returns().size());
}

void autocast(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::DispatchKey::AutocastMPS};
  const at::ScalarType dtype = at::autocast::get_autocast_dtype(at::kMPS);
  for (size_t i = stack->size() - op.schema().arguments().size(); i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor()) value = at::autocast::cached_cast(dtype, value.toTensor(), at::kMPS);
  }
  op.callBoxed(stack);
}

}  // namespace mpsk
