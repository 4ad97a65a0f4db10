// Which activation a gated op applies: the constants that its kernel is specialised with.
#pragma once

#include <string_view>

namespace mpsk {

struct activation_choice {
  std::string_view op;
  std::string_view approximate;  // of geglu
  bool silu, gelu, gelu_tanh;    // none of them: ReLU
};

inline constexpr activation_choice activation_choices[] = {
    {.op = "swiglu", .approximate = "none", .silu = true, .gelu = false, .gelu_tanh = false},
    {.op = "geglu", .approximate = "none", .silu = false, .gelu = true, .gelu_tanh = false},
    {.op = "geglu", .approximate = "tanh", .silu = false, .gelu = false, .gelu_tanh = true},
    {.op = "reglu", .approximate = "none", .silu = false, .gelu = false, .gelu_tanh = false},
};

constexpr const activation_choice* choose_activation(std::string_view op, std::string_view approximate) {
  for (const activation_choice& choice : activation_choices) {
    if (choice.op == op && choice.approximate == approximate) return &choice;
  }
  return nullptr;
}

}  // namespace mpsk
