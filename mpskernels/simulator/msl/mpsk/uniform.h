// metal::uniform: a value that is the same in every thread of a threadgroup. The promise changes nothing here.
#pragma once

#include "types.h"

namespace metal {

template <typename T>
struct uniform {
  uniform() = default;
  constexpr uniform(T value) : value(value) {}
  constexpr operator T() const { return value; }
  T value;
};

template <typename T>
constexpr uniform<T> make_uniform(T value) {
  return uniform<T>(value);
}

#define MPSK_UNIFORM(op)                                   \
  template <typename T>                                    \
  constexpr auto operator op(uniform<T> a, uniform<T> b) { \
    return make_uniform(a.value op b.value);               \
  }
MPSK_UNIFORM(+)
MPSK_UNIFORM(-)
MPSK_UNIFORM(*)
MPSK_UNIFORM(/)
MPSK_UNIFORM(%)
#undef MPSK_UNIFORM

}  // namespace metal
