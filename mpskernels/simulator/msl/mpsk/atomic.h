// <metal_atomic>. Objects are device or threadgroup memory; every order but relaxed is refused.
#pragma once

#include "barrier.h"

MPSK_BEGIN

enum memory_order { memory_order_relaxed = 0, memory_order_seq_cst = 5 };
enum thread_scope { thread_scope_thread, thread_scope_simdgroup, thread_scope_threadgroup, thread_scope_device };

template <typename T> struct atomic {
  static_assert(is_same_v<T, int> || is_same_v<T, uint> || is_same_v<T, bool> || is_same_v<T, ulong> ||
                    is_same_v<T, float>,
                "atomic<T> exists for int, uint, bool, ulong and float");
  T value;
  atomic() = default;
  atomic(const atomic&) = delete;
  void operator=(const atomic&) = delete;
};

// Host mpsk_atomic, on integers as wide as T.
namespace mpsk_atomic {

template <typename T> struct cell {
  using type = T;
};
template <> struct cell<float> {
  using type = uint;
};
template <> struct cell<bool> {
  using type = uchar;
};
template <typename T> using cell_t = typename cell<T>::type;

template <typename T> __generic cell_t<T>* address(const volatile __generic atomic<T>* object) {
  return (__generic cell_t<T>*)&object->value;
}
template <typename T> T load(const volatile __generic atomic<T>* object) {
  return __builtin_bit_cast(T, __atomic_load_n(address(object), __ATOMIC_RELAXED));
}
template <typename T> void store(volatile __generic atomic<T>* object, T value) {
  __atomic_store_n(address(object), __builtin_bit_cast(cell_t<T>, value), __ATOMIC_RELAXED);
}
template <typename T> T exchange(volatile __generic atomic<T>* object, T value) {
  return __builtin_bit_cast(
      T, __atomic_exchange_n(address(object), __builtin_bit_cast(cell_t<T>, value), __ATOMIC_RELAXED));
}
template <typename T> bool compare_exchange(volatile __generic atomic<T>* object, thread T* expected, T desired) {
  cell_t<T> seen = __builtin_bit_cast(cell_t<T>, *expected);
  bool same = __atomic_compare_exchange_n(address(object), &seen, __builtin_bit_cast(cell_t<T>, desired), false,
                                          __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  *expected = __builtin_bit_cast(T, seen);
  return same;
}
template <typename T> constexpr bool has_value = !is_same_v<T, ulong>;  // 64 bits know only minimum and maximum
template <typename T> constexpr bool has_value_in_threadgroup = has_value<T> && !is_same_v<T, float>;
template <typename T> constexpr bool is_integer = is_same_v<T, int> || is_same_v<T, uint>;

}  // namespace mpsk_atomic

#define MPSK_RELAXED \
  __attribute__((    \
      diagnose_if(order != memory_order_relaxed, "atomic operations take memory_order_relaxed only", "error")))

#define MPSK_ATOMICS(space, has_value)                                                                                \
  template <typename T, enable_if_t<mpsk_atomic::has_value<T>, int> = 0>                                              \
  inline void atomic_store_explicit(volatile space atomic<T>* object, mpsk_type::identity_t<T> desired,               \
                                    memory_order order) MPSK_RELAXED {                                                \
    mpsk_atomic::store<T>(object, desired);                                                                           \
  }                                                                                                                   \
  template <typename T, enable_if_t<mpsk_atomic::has_value<T>, int> = 0>                                              \
  inline T atomic_load_explicit(const volatile space atomic<T>* object, memory_order order) MPSK_RELAXED {            \
    return mpsk_atomic::load<T>(object);                                                                              \
  }                                                                                                                   \
  template <typename T, enable_if_t<mpsk_atomic::has_value<T>, int> = 0>                                              \
  inline T atomic_exchange_explicit(volatile space atomic<T>* object, mpsk_type::identity_t<T> desired,               \
                                    memory_order order) MPSK_RELAXED {                                                \
    return mpsk_atomic::exchange<T>(object, desired);                                                                 \
  }                                                                                                                   \
  template <typename T, enable_if_t<mpsk_atomic::has_value<T>, int> = 0>                                              \
  inline bool atomic_compare_exchange_weak_explicit(                                                                  \
      volatile space atomic<T>* object, thread mpsk_type::identity_t<T>* expected, mpsk_type::identity_t<T> desired,  \
      memory_order order, memory_order failure) MPSK_RELAXED                                                          \
      __attribute__((diagnose_if(failure != memory_order_relaxed, "atomic operations take memory_order_relaxed only", \
                                 "error"))) {                                                                         \
    return mpsk_atomic::compare_exchange<T>(object, expected, desired);                                               \
  }                                                                                                                   \
  MPSK_ATOMIC_FETCH(space, add)                                                                                       \
  MPSK_ATOMIC_FETCH(space, sub)                                                                                       \
  MPSK_ATOMIC_FETCH(space, and)                                                                                       \
  MPSK_ATOMIC_FETCH(space, or)                                                                                        \
  MPSK_ATOMIC_FETCH(space, xor)                                                                                       \
  MPSK_ATOMIC_FETCH(space, max)                                                                                       \
  MPSK_ATOMIC_FETCH(space, min)
#define MPSK_ATOMIC_FETCH(space, key)                                                                        \
  template <typename T, enable_if_t<mpsk_atomic::is_integer<T>, int> = 0>                                    \
  inline T atomic_fetch_##key##_explicit(volatile space atomic<T>* object, mpsk_type::identity_t<T> operand, \
                                         memory_order order) MPSK_RELAXED {                                  \
    return __atomic_fetch_##key(mpsk_atomic::address(object), operand, __ATOMIC_RELAXED);                    \
  }
MPSK_ATOMICS(device, has_value)
MPSK_ATOMICS(threadgroup, has_value_in_threadgroup)
#undef MPSK_ATOMICS
#undef MPSK_ATOMIC_FETCH

inline float atomic_fetch_add_explicit(volatile device atomic<float>* object, float operand,
                                       memory_order order) MPSK_RELAXED {
  return __atomic_fetch_add((volatile __generic float*)&object->value, operand, __ATOMIC_RELAXED);
}
inline float atomic_fetch_sub_explicit(volatile device atomic<float>* object, float operand,
                                       memory_order order) MPSK_RELAXED {
  return atomic_fetch_add_explicit(object, -operand, memory_order_relaxed);
}
inline void atomic_max_explicit(volatile device atomic<ulong>* object, ulong operand, memory_order order) MPSK_RELAXED {
  __atomic_fetch_max(mpsk_atomic::address(object), operand, __ATOMIC_RELAXED);
}
inline void atomic_min_explicit(volatile device atomic<ulong>* object, ulong operand, memory_order order) MPSK_RELAXED {
  __atomic_fetch_min(mpsk_atomic::address(object), operand, __ATOMIC_RELAXED);
}
#undef MPSK_RELAXED

inline void atomic_thread_fence(mem_flags, memory_order order, thread_scope = thread_scope_device) {
  if (order == memory_order_seq_cst) __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

MPSK_END

// OpenCL has types of these names of its own.
#define atomic_int mpsk_atomic_int
#define atomic_uint mpsk_atomic_uint
#define atomic_bool mpsk_atomic_bool
#define atomic_ulong mpsk_atomic_ulong
#define atomic_float mpsk_atomic_float
namespace metal {
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<bool> atomic_bool;
typedef atomic<ulong> atomic_ulong;
typedef atomic<float> atomic_float;
}  // namespace metal
