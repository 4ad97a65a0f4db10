// Which activation a gated op applies.
#pragma once

#include <string_view>

#include "common/activation_kinds.h"

namespace mpsk {

struct activation_choice {
  std::string_view op;
  std::string_view approximate;  // of geglu
  activation_kind kind;
};

inline constexpr activation_choice activation_choices[] = {
    {.op = "swiglu", .approximate = "none", .kind = activation_silu},
    {.op = "geglu", .approximate = "none", .kind = activation_gelu},
    {.op = "geglu", .approximate = "tanh", .kind = activation_gelu_tanh},
    {.op = "reglu", .approximate = "none", .kind = activation_relu},
};

constexpr const activation_choice* choose_activation(std::string_view op, std::string_view approximate) {
  for (const activation_choice& choice : activation_choices) {
    if (choice.op == op && choice.approximate == approximate) return &choice;
  }
  return nullptr;
}

}  // namespace mpsk
