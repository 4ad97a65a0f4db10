// <metal_type_traits>. Traits ignore address spaces as they ignore const.
#pragma once

MPSK_BEGIN

template <typename T, T v> struct integral_constant {
  static constexpr T value = v;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return v; }
  constexpr T operator()() const { return v; }
};
template <bool v> using bool_constant = integral_constant<bool, v>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

template <bool condition, typename T = void> struct enable_if {};
template <typename T> struct enable_if<true, T> {
  using type = T;
};
template <bool condition, typename T = void> using enable_if_t = typename enable_if<condition, T>::type;

template <bool condition, typename T, typename F> struct conditional {
  using type = T;
};
template <typename T, typename F> struct conditional<false, T, F> {
  using type = F;
};
template <bool condition, typename T, typename F> using conditional_t = typename conditional<condition, T, F>::type;

// What these headers need beyond Metal's traits, out of the way of a source's own names.
namespace mpsk_type {

template <typename T> struct identity {
  using type = T;
};
template <typename T> using identity_t = typename identity<T>::type;
template <typename T> struct is_bfloat : false_type {};

}  // namespace mpsk_type

template <typename T> struct remove_const : mpsk_type::identity<T> {};
template <typename T> struct remove_const<const T> : mpsk_type::identity<T> {};
template <typename T> struct remove_volatile : mpsk_type::identity<T> {};
template <typename T> struct remove_volatile<volatile T> : mpsk_type::identity<T> {};
template <typename T> struct remove_cv : mpsk_type::identity<T> {};
template <typename T> struct remove_cv<const T> : mpsk_type::identity<T> {};
template <typename T> struct remove_cv<volatile T> : mpsk_type::identity<T> {};
template <typename T> struct remove_cv<const volatile T> : mpsk_type::identity<T> {};
template <typename T> struct remove_addrspace : mpsk_type::identity<T> {};
#define MPSK_SPACE(space)                                                                         \
  template <typename T> struct remove_addrspace<space T> : mpsk_type::identity<T> {};             \
  template <typename T> struct remove_addrspace<const space T> : mpsk_type::identity<const T> {}; \
  template <typename T> struct remove_cv<space T> : mpsk_type::identity<T> {};                    \
  template <typename T> struct remove_cv<const space T> : mpsk_type::identity<T> {};              \
  template <typename T> struct remove_cv<volatile space T> : mpsk_type::identity<T> {};           \
  template <typename T> struct remove_cv<const volatile space T> : mpsk_type::identity<T> {};
MPSK_SPACE(__attribute__((opencl_global_device)))
MPSK_SPACE(__attribute__((opencl_global_host)))
MPSK_SPACE(__local)
MPSK_SPACE(__private)
MPSK_SPACE(__generic)
#undef MPSK_SPACE
template <typename T> struct remove_reference : mpsk_type::identity<T> {};
template <typename T> struct remove_reference<T&> : mpsk_type::identity<T> {};
template <typename T> struct remove_reference<T&&> : mpsk_type::identity<T> {};
template <typename T> struct remove_pointer : mpsk_type::identity<T> {};
template <typename T> struct remove_pointer<T*> : mpsk_type::identity<T> {};
template <typename T> struct remove_extent : mpsk_type::identity<T> {};
template <typename T> struct remove_extent<T[]> : mpsk_type::identity<T> {};
template <typename T, unsigned long n> struct remove_extent<T[n]> : mpsk_type::identity<T> {};
template <typename T> struct add_const {
  using type = const T;
};
template <typename T> using remove_const_t = typename remove_const<T>::type;
template <typename T> using remove_volatile_t = typename remove_volatile<T>::type;
template <typename T> using remove_addrspace_t = typename remove_addrspace<T>::type;
template <typename T> using remove_cv_t = typename remove_cv<T>::type;
template <typename T> using remove_reference_t = typename remove_reference<T>::type;
template <typename T> using remove_pointer_t = typename remove_pointer<T>::type;
template <typename T> using remove_extent_t = typename remove_extent<T>::type;
template <typename T> using add_const_t = const T;
template <typename T> struct decay {
  using type = remove_cv_t<remove_reference_t<T>>;
};
template <typename T> using decay_t = typename decay<T>::type;

// A trait that clang answers, and its _v form.
#define MPSK_TRAIT(name, answer)                                \
  template <typename T> struct name : bool_constant<answer> {}; \
  template <typename T> constexpr bool name##_v = name<T>::value;
MPSK_TRAIT(is_void, __is_void(remove_cv_t<T>))
MPSK_TRAIT(is_integral, __is_integral(remove_cv_t<T>))
MPSK_TRAIT(is_enum, __is_enum(remove_cv_t<T>))
MPSK_TRAIT(is_union, __is_union(remove_cv_t<T>))
MPSK_TRAIT(is_class, __is_class(remove_cv_t<T>))
MPSK_TRAIT(is_array, __is_array(T))
MPSK_TRAIT(is_function, __is_function(T))
MPSK_TRAIT(is_pointer, __is_pointer(remove_cv_t<T>))
MPSK_TRAIT(is_reference, __is_reference(T))
MPSK_TRAIT(is_lvalue_reference, __is_lvalue_reference(T))
MPSK_TRAIT(is_rvalue_reference, __is_rvalue_reference(T))
MPSK_TRAIT(is_const, __is_const(T))
MPSK_TRAIT(is_volatile, __is_volatile(T))
MPSK_TRAIT(is_trivial, __is_trivial(T))
MPSK_TRAIT(is_trivially_copyable, __is_trivially_copyable(T))
MPSK_TRAIT(is_standard_layout, __is_standard_layout(T))
MPSK_TRAIT(is_pod, __is_pod(T))
MPSK_TRAIT(is_floating_point, __is_floating_point(remove_cv_t<T>) || mpsk_type::is_bfloat<remove_cv_t<T>>::value)
MPSK_TRAIT(is_arithmetic, is_integral_v<T> || is_floating_point_v<T>)
MPSK_TRAIT(is_fundamental, is_arithmetic_v<T> || is_void_v<T>)
MPSK_TRAIT(is_scalar, is_arithmetic_v<T> || is_enum_v<T> || is_pointer_v<T>)
MPSK_TRAIT(is_compound, !is_fundamental_v<T>)
MPSK_TRAIT(is_signed, __is_signed(remove_cv_t<T>) || mpsk_type::is_bfloat<remove_cv_t<T>>::value)
MPSK_TRAIT(is_unsigned, __is_unsigned(remove_cv_t<T>))
#undef MPSK_TRAIT

#define MPSK_TRAIT(name, answer)                                            \
  template <typename T, typename U> struct name : bool_constant<answer> {}; \
  template <typename T, typename U> constexpr bool name##_v = name<T, U>::value;
MPSK_TRAIT(is_same, __is_same(T, U))
MPSK_TRAIT(is_convertible, __is_convertible(T, U))
MPSK_TRAIT(is_base_of, __is_base_of(T, U))
MPSK_TRAIT(is_assignable, __is_assignable(T, U))
#undef MPSK_TRAIT

template <typename T, typename... Args> struct is_constructible : bool_constant<__is_constructible(T, Args...)> {};
template <typename T, typename... Args> constexpr bool is_constructible_v = is_constructible<T, Args...>::value;

template <typename T, bool = is_enum_v<T>> struct underlying_type {
  using type = __underlying_type(T);
};
template <typename T> struct underlying_type<T, false> {};
template <typename T> using underlying_type_t = typename underlying_type<T>::type;

template <typename T> struct make_signed {
  using type = __make_signed(remove_cv_t<T>);
};
template <typename T> struct make_unsigned {
  using type = __make_unsigned(remove_cv_t<T>);
};
template <typename T> using make_signed_t = typename make_signed<T>::type;
template <typename T> using make_unsigned_t = typename make_unsigned<T>::type;

// Not in the specification, but used by shipped kernels under this name.
template <typename... T> struct _disjunction : bool_constant<(T::value || ...)> {};

template <typename T> T&& declval();

// The type that the operators give for a mix of types.
template <typename... T> struct common_type {};
template <typename T> struct common_type<T> : mpsk_type::identity<remove_cv_t<remove_reference_t<T>>> {};
template <typename T, typename U> struct common_type<T, U> {
  using type = remove_cv_t<remove_reference_t<decltype(true ? declval<T>() : declval<U>())>>;
};
template <typename T, typename U, typename... R>
struct common_type<T, U, R...> : common_type<typename common_type<T, U>::type, R...> {};
template <typename... T> using common_type_t = typename common_type<T...>::type;

template <typename F, typename... Args> struct result_of;
template <typename F, typename... Args> struct result_of<F(Args...)> {
  using type = decltype(declval<F>()(declval<Args>()...));
};
template <typename F> using result_of_t = typename result_of<F>::type;

MPSK_END
