// Between compiled kernels and the device: what the rewritten source refers to. Nothing here is Metal's.
#pragma once

#include "../../device/abi.h"
#include "types.h"

extern "C" {
// Waits for the lanes of the simdgroup that arrive here too; then `combine` has run once for all of them.
__attribute__((convergent)) void mpsk_simd(void* payload, void (*combine)(void* const* payloads, unsigned active));
// The same, for what is no operation of Metal's.
__attribute__((convergent)) void mpsk_meet(void* payload, void (*combine)(void* const* payloads, unsigned active));
__attribute__((convergent)) void mpsk_threadgroup_barrier(unsigned flags);
__attribute__((convergent)) void mpsk_simdgroup_barrier(unsigned flags);
__attribute__((noreturn)) void mpsk_fault(mpsk_text message);
}

namespace mpsk {

using metal::vec;

// The running thread.
__attribute__((always_inline)) inline mpsk_slot& stack_slot() {
  return *(mpsk_slot*)MPSK_SLOT((ulong)__builtin_frame_address(0));
}
__attribute__((always_inline)) inline const mpsk_thread& self() { return *stack_slot().running; }

// --- Places in the source ---
// See compiler/convergence.py.

__attribute__((always_inline)) inline void at(unsigned place) { stack_slot().place = place; }

struct frame {
  __attribute__((always_inline)) frame() {
    mpsk_slot& slot = stack_slot();
    if (slot.depth < MPSK_MAX_CALLS) slot.calls[slot.depth] = slot.place;
    ++slot.depth;
  }
  __attribute__((always_inline)) ~frame() {
    mpsk_slot& slot = stack_slot();
    --slot.depth;
    if (slot.depth < MPSK_MAX_CALLS) slot.place = slot.calls[slot.depth];
  }
};

// Back at the call that `value` is an argument of: lanes that did not work one out have not left it.
template <typename T>
__attribute__((always_inline)) inline T back(unsigned place, T value) {
  at(place);
  return value;
}

inline void nothing(void* const*, unsigned) {}

__attribute__((always_inline, convergent)) inline void join(unsigned place) {
  at(place);
  mpsk_meet(nullptr, &nothing);
}

// --- Arguments of kernels ---

template <int N, typename First, typename... Rest>
struct nth : nth<N - 1, Rest...> {};
template <typename First, typename... Rest>
struct nth<0, First, Rest...> {
  using type = First;
};

template <typename F>
struct signature;
template <typename... Args>
struct signature<void(Args...)> {
  template <int I>
  using argument = typename nth<I, Args...>::type;
};
template <typename... Args>
struct signature<void (*)(Args...)> : signature<void(Args...)> {};

// What a buffer argument points to. Kernel arguments are pointers and references with an address space, or built-ins.
template <typename T>
struct argument_traits {
  static constexpr unsigned kind = mpsk_argument_builtin;
  static constexpr unsigned size = 0, align = 1;
  static constexpr bool is_const = true, is_reference = false;
};

template <typename T, unsigned Kind, bool Reference>
struct memory_argument {
  static constexpr unsigned kind = Kind;
  using object = metal::conditional_t<metal::is_void_v<T>, char, T>;
  static constexpr unsigned size = sizeof(object), align = alignof(object);
  static constexpr bool is_reference = Reference;
};

#define MPSK_MEMORY_ARGUMENT(SPACE, KIND, DECLARATOR, REFERENCE)                                            \
  template <typename T>                                                                                     \
  struct argument_traits<SPACE T DECLARATOR> : memory_argument<T, KIND, REFERENCE> {                        \
    static constexpr bool is_const = KIND == mpsk_argument_constant;                                        \
    static SPACE T DECLARATOR bind(void* slot) { return MPSK_BIND_##REFERENCE(SPACE T, slot); }             \
  };                                                                                                        \
  template <typename T>                                                                                     \
  struct argument_traits<SPACE const T DECLARATOR> : memory_argument<T, KIND, REFERENCE> {                  \
    static constexpr bool is_const = true;                                                                  \
    static SPACE const T DECLARATOR bind(void* slot) { return MPSK_BIND_##REFERENCE(SPACE const T, slot); } \
  };
#define MPSK_BIND_false(T, slot) (T*)slot
#define MPSK_BIND_true(T, slot) *(T*)slot
MPSK_MEMORY_ARGUMENT(device, mpsk_argument_device, *, false)
MPSK_MEMORY_ARGUMENT(device, mpsk_argument_device, &, true)
MPSK_MEMORY_ARGUMENT(threadgroup, mpsk_argument_threadgroup, *, false)
MPSK_MEMORY_ARGUMENT(threadgroup, mpsk_argument_threadgroup, &, true)
#undef MPSK_MEMORY_ARGUMENT
#define MPSK_CONSTANT_ARGUMENT(DECLARATOR, REFERENCE)                                                     \
  template <typename T>                                                                                   \
  struct argument_traits<constant T DECLARATOR> : memory_argument<T, mpsk_argument_constant, REFERENCE> { \
    static constexpr bool is_const = true;                                                                \
    static constant T DECLARATOR bind(void* slot) { return MPSK_BIND_##REFERENCE(constant T, slot); }     \
  };
MPSK_CONSTANT_ARGUMENT(*, false)
MPSK_CONSTANT_ARGUMENT(&, true)
#undef MPSK_CONSTANT_ARGUMENT
#undef MPSK_BIND_false
#undef MPSK_BIND_true

// --- Built-in arguments ---

template <typename T>
struct builtin_traits {
  static constexpr int components = 0;
};
#define MPSK_BUILTIN(T)                  \
  template <>                            \
  struct builtin_traits<T> {             \
    static constexpr int components = 1; \
    using scalar = T;                    \
  };                                     \
  template <int N>                       \
  struct builtin_traits<vec<T, N>> {     \
    static constexpr int components = N; \
    using scalar = T;                    \
  };
MPSK_BUILTIN(uint)
MPSK_BUILTIN(ushort)
#undef MPSK_BUILTIN

template <typename T>
inline T position_builtin(mpsk_size value) {
  constexpr int components = builtin_traits<T>::components;
  static_assert(components >= 1 && components <= 3,
                "a position or size attribute needs the type uint, ushort or a vector of two or three of them");
  using scalar = typename builtin_traits<T>::scalar;
  if constexpr (components == 1) return scalar(value.x);
  if constexpr (components == 2) return T(scalar(value.x), scalar(value.y));
  if constexpr (components == 3) return T(scalar(value.x), scalar(value.y), scalar(value.z));
}

template <typename T>
inline T index_builtin(unsigned value) {
  static_assert(builtin_traits<T>::components == 1, "an index attribute needs the type uint or ushort");
  return T(value);
}

// Metal wants the vector attributes of one kernel to have the same number of components.
template <int... Components>
constexpr bool same_components() {
  const int components[] = {Components..., 0};
  for (unsigned i = 1; i < sizeof...(Components); ++i) {
    if (components[i] != components[0]) return false;
  }
  return true;
}

// --- Numbers of arguments ---

template <int N>
struct argument_numbers {
  bool valid;  // no number is out of range or taken twice
  unsigned index[N];
};

template <unsigned Kind, int Explicit>
struct slot {};

// Arguments without [[buffer(n)]] or [[threadgroup(n)]] (-1) take the first free index of their kind.
template <unsigned... Kinds, int... Explicit>
constexpr argument_numbers<sizeof...(Kinds) + 1> number_arguments(slot<Kinds, Explicit>...) {
  constexpr unsigned count = sizeof...(Kinds);
  const unsigned kinds[] = {Kinds..., 0};
  const int indices[] = {Explicit..., 0};
  argument_numbers<count + 1> result{true, {}};
  unsigned used[2] = {0, 0};  // bits of buffer and threadgroup indices
  for (unsigned i = 0; i < count; ++i) {
    if (kinds[i] == mpsk_argument_builtin || indices[i] == -1) continue;
    unsigned& taken = used[kinds[i] == mpsk_argument_threadgroup];
    if (indices[i] < 0 || indices[i] >= int(MPSK_MAX_BUFFERS) || (taken >> indices[i] & 1)) {
      result.valid = false;
      return result;
    }
    taken |= 1u << indices[i];
    result.index[i] = unsigned(indices[i]);
  }
  for (unsigned i = 0; i < count; ++i) {
    if (kinds[i] == mpsk_argument_builtin || indices[i] != -1) continue;
    unsigned& taken = used[kinds[i] == mpsk_argument_threadgroup];
    unsigned free = 0;
    while (taken >> free & 1) ++free;
    if (free >= MPSK_MAX_BUFFERS) result.valid = false;
    taken |= 1u << free;
    result.index[i] = free;
  }
  return result;
}

// --- Memory declared in a kernel ---

// The memory of the `threadgroup` declaration with this number. The record tells the device how much the kernel needs.
template <unsigned Id, unsigned Align, typename T>
__attribute__((always_inline)) inline threadgroup T& threadgroup_memory() {
  __asm__ volatile(
      "1: .pushsection mpsk_threadgroup,\"aw\"\n"
      ".quad 1b\n.quad %c0\n.quad %c1\n.quad %c2\n"
      ".popsection"
      :
      : "i"(Id), "i"(sizeof(T)), "i"(Align > alignof(T) ? Align : alignof(T)));
  return *(threadgroup T*)self().group->threadgroup_memory[Id];
}

// --- Temporaries ---

// A temporary as the object of the thread that it is, for its methods.
template <typename T>
inline thread T* object(const T& temporary) {
  return (thread T*)&temporary;
}

// The right side of `+=` and `-=`: an object that stands for an integer (it is empty and converts) becomes that, for
// clang adds only integers to a pointer that lies in an address space.
template <typename T>
constexpr auto addend(T value) {
  if constexpr (__is_empty(T) && __is_convertible(thread T&, long)) {
    return long(value);
  } else {
    return value;
  }
}

// --- Program-scope constants ---

// The language puts program-scope objects in its global address space; Metal's belong to `constant`.
template <typename T>
constant T& as_constant(const __global T& object) {
  return *(constant T*)&object;
}

}  // namespace mpsk
