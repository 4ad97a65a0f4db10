// How an op becomes part of torch.
#pragma once

#include <torch/library.h>

#include <string>

// The namespace of the ops in torch. Hugging Face's kernel-builder gives each build one of its own, so that a process
// can load several.
#ifdef METAL_KERNEL
#define MPSK_NAMESPACE TORCH_EXTENSION_NAME
#else
#define MPSK_NAMESPACE mpsk
#endif

namespace mpsk {

// The kernel of every op for Autograd: raises NotImplementedError where a gradient would be needed, else passes on.
void refuse_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

// The same for forward mode alone, below Autograd: of the ops whose gradient in reverse mode is registered.
void refuse_tangents(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

// Where a gradient is needed, calls <op>_saving instead: it takes the same arguments and returns, after the result,
// what its registered gradient wants to have kept.
void save_for_gradient(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

// Under torch.autocast: float tensors arrive in the dtype of its region, as those of torch.matmul do.
void autocast(const c10::OperatorHandle& op, torch::jit::Stack* stack);

// Who answers when a gradient is needed: nobody, what the op's file in mpskernels/ops registers, or <op>_saving.
enum class Gradient { refused, registered, saving };
enum class Autocast { keeps, casts };

// Defines an op with its kernel, for tensors of every kind and for none: its check refuses all but dense ones on mps,
// in place of torch's dispatcher and its texts.
template <class Kernel>
void define_op(torch::Library& m, const char* schema, Kernel* kernel, Gradient gradient = Gradient::refused,
               Autocast autocasts = Autocast::keeps) {
  m.def(schema, {at::Tag::pt2_compliant_tag});
  const std::string text = schema;
  const std::string name = text.substr(0, text.find('('));
  m.impl(name.c_str(), c10::DispatchKey::CompositeExplicitAutograd, kernel);
  m.impl(name.c_str(), c10::DispatchKey::CompositeImplicitAutogradNestedTensor, kernel);  // not among the former
  if (autocasts == Autocast::casts) {
    m.impl(name.c_str(), c10::DispatchKey::AutocastMPS, torch::CppFunction::makeFromBoxedFunction<&autocast>());
  }
  if (gradient != Gradient::refused) {
    m.impl(name.c_str(), c10::DispatchKey::ADInplaceOrView,
           torch::CppFunction::makeFromBoxedFunction<&refuse_tangents>());
    if (gradient == Gradient::registered) return;
    m.impl(name.c_str(), c10::DispatchKey::Autograd, torch::CppFunction::makeFromBoxedFunction<&save_for_gradient>());
    return;
  }
  m.impl(name.c_str(), c10::DispatchKey::Autograd, torch::CppFunction::makeFromBoxedFunction<&refuse_autograd>());
}

}  // namespace mpsk
