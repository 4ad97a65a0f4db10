// Barriers (MSL 6.9.1).
#pragma once

#include "runtime.h"

namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16,
};

constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(uint(a) | uint(b)); }
constexpr mem_flags operator&(mem_flags a, mem_flags b) { return mem_flags(uint(a) & uint(b)); }

__attribute__((always_inline, convergent)) inline void threadgroup_barrier(mem_flags flags) {
  mpsk_threadgroup_barrier(uint(flags));
}

// Without memory to order, a simdgroup_barrier promises nothing that a program could observe.
__attribute__((always_inline, convergent)) inline void simdgroup_barrier(mem_flags flags) {
  if (flags != mem_flags::mem_none) mpsk_simdgroup_barrier(uint(flags));
}

}  // namespace metal
