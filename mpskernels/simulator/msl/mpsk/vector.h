// Vectors: vec<T, n>, aligned to its size, and packed_vec<T, n>, aligned like T.
#pragma once

// Selections such as v.xyz and v.bgra: a property for every ordered choice of one to four components, one that can be
// assigned where no component repeats. MPSK_REPEATS_ab expands to something for equal a and b, else to nothing.
#define MPSK_COLOUR_x r
#define MPSK_COLOUR_y g
#define MPSK_COLOUR_z b
#define MPSK_COLOUR_w a
#define MPSK_REPEATS_xx 1
#define MPSK_REPEATS_xy
#define MPSK_REPEATS_xz
#define MPSK_REPEATS_xw
#define MPSK_REPEATS_yx
#define MPSK_REPEATS_yy 1
#define MPSK_REPEATS_yz
#define MPSK_REPEATS_yw
#define MPSK_REPEATS_zx
#define MPSK_REPEATS_zy
#define MPSK_REPEATS_zz 1
#define MPSK_REPEATS_zw
#define MPSK_REPEATS_wx
#define MPSK_REPEATS_wy
#define MPSK_REPEATS_wz
#define MPSK_REPEATS_ww 1

#define MPSK_JOIN2(a, b) a##b
#define MPSK_JOIN3(a, b, c) a##b##c
#define MPSK_JOIN4(a, b, c, d) a##b##c##d
#define MPSK_EXPAND(join, ...) join(__VA_ARGS__)

#define MPSK_SELECT1(a)                     \
  constexpr T get_##a() const { return a; } \
  constexpr void put_##a(T v)& { a = v; }   \
  __declspec(property(get = get_##a, put = put_##a)) T MPSK_COLOUR_##a;

// name and colours are the two spellings of the selection; what follows is empty if it repeats no component.
#define MPSK_SELECT(n, name, colours, get, put, ...) MPSK_SELECT_##__VA_OPT__(REPEATED)(n, name, colours, get, put)
#define MPSK_SELECT_(n, name, colours, get_values, put_values)                         \
  constexpr vec<T, n> get_##name() const { return vec<T, n>(MPSK_VALUES get_values); } \
  constexpr void put_##name(vec<T, n> v)& { put_values }                               \
  __declspec(property(get = get_##name, put = put_##name)) vec<T, n> name, colours;
#define MPSK_SELECT_REPEATED(n, name, colours, get_values, put_values)                 \
  constexpr vec<T, n> get_##name() const { return vec<T, n>(MPSK_VALUES get_values); } \
  __declspec(property(get = get_##name)) vec<T, n> name, colours;
#define MPSK_VALUES(...) __VA_ARGS__

#define MPSK_SELECT2(a, b)                                                                                      \
  MPSK_EXPAND(MPSK_SELECT, 2, a##b, MPSK_EXPAND(MPSK_JOIN2, MPSK_COLOUR_##a, MPSK_COLOUR_##b), (a, b), a = v.x; \
              b = v.y;, MPSK_REPEATS_##a##b)
#define MPSK_SELECT3(a, b, c)                                                                                      \
  MPSK_EXPAND(MPSK_SELECT, 3, a##b##c, MPSK_EXPAND(MPSK_JOIN3, MPSK_COLOUR_##a, MPSK_COLOUR_##b, MPSK_COLOUR_##c), \
              (a, b, c), a = v.x;                                                                                  \
              b = v.y; c = v.z;, MPSK_REPEATS_##a##b MPSK_REPEATS_##a##c MPSK_REPEATS_##b##c)
#define MPSK_SELECT4(a, b, c, d)                                                                           \
  MPSK_EXPAND(MPSK_SELECT, 4, a##b##c##d,                                                                  \
              MPSK_EXPAND(MPSK_JOIN4, MPSK_COLOUR_##a, MPSK_COLOUR_##b, MPSK_COLOUR_##c, MPSK_COLOUR_##d), \
              (a, b, c, d), a = v.x;                                                                       \
              b = v.y; c = v.z; d = v.w;, MPSK_REPEATS_##a##b MPSK_REPEATS_##a##c MPSK_REPEATS_##a##d      \
                                              MPSK_REPEATS_##b##c MPSK_REPEATS_##b##d MPSK_REPEATS_##c##d)

// MPSK_n_k(M): M of every choice of k out of the first n components.
#define MPSK_CHOICES(EACH1, EACH2, EACH3, EACH4) \
  EACH1(MPSK_SELECT1) EACH2(MPSK_SELECT2) EACH3(MPSK_SELECT3) EACH4(MPSK_SELECT4)
#define MPSK_2_1(M) M(x) M(y)
#define MPSK_2_2(M) MPSK_2_2_(M, x) MPSK_2_2_(M, y)
#define MPSK_2_2_(M, a) M(a, x) M(a, y)
#define MPSK_2_3(M) MPSK_2_3_(M, x) MPSK_2_3_(M, y)
#define MPSK_2_3_(M, a) MPSK_2_3__(M, a, x) MPSK_2_3__(M, a, y)
#define MPSK_2_3__(M, a, b) M(a, b, x) M(a, b, y)
#define MPSK_2_4(M) MPSK_2_4_(M, x) MPSK_2_4_(M, y)
#define MPSK_2_4_(M, a) MPSK_2_4__(M, a, x) MPSK_2_4__(M, a, y)
#define MPSK_2_4__(M, a, b) MPSK_2_4___(M, a, b, x) MPSK_2_4___(M, a, b, y)
#define MPSK_2_4___(M, a, b, c) M(a, b, c, x) M(a, b, c, y)
#define MPSK_3_1(M) M(x) M(y) M(z)
#define MPSK_3_2(M) MPSK_3_2_(M, x) MPSK_3_2_(M, y) MPSK_3_2_(M, z)
#define MPSK_3_2_(M, a) M(a, x) M(a, y) M(a, z)
#define MPSK_3_3(M) MPSK_3_3_(M, x) MPSK_3_3_(M, y) MPSK_3_3_(M, z)
#define MPSK_3_3_(M, a) MPSK_3_3__(M, a, x) MPSK_3_3__(M, a, y) MPSK_3_3__(M, a, z)
#define MPSK_3_3__(M, a, b) M(a, b, x) M(a, b, y) M(a, b, z)
#define MPSK_3_4(M) MPSK_3_4_(M, x) MPSK_3_4_(M, y) MPSK_3_4_(M, z)
#define MPSK_3_4_(M, a) MPSK_3_4__(M, a, x) MPSK_3_4__(M, a, y) MPSK_3_4__(M, a, z)
#define MPSK_3_4__(M, a, b) MPSK_3_4___(M, a, b, x) MPSK_3_4___(M, a, b, y) MPSK_3_4___(M, a, b, z)
#define MPSK_3_4___(M, a, b, c) M(a, b, c, x) M(a, b, c, y) M(a, b, c, z)
#define MPSK_4_1(M) M(x) M(y) M(z) M(w)
#define MPSK_4_2(M) MPSK_4_2_(M, x) MPSK_4_2_(M, y) MPSK_4_2_(M, z) MPSK_4_2_(M, w)
#define MPSK_4_2_(M, a) M(a, x) M(a, y) M(a, z) M(a, w)
#define MPSK_4_3(M) MPSK_4_3_(M, x) MPSK_4_3_(M, y) MPSK_4_3_(M, z) MPSK_4_3_(M, w)
#define MPSK_4_3_(M, a) MPSK_4_3__(M, a, x) MPSK_4_3__(M, a, y) MPSK_4_3__(M, a, z) MPSK_4_3__(M, a, w)
#define MPSK_4_3__(M, a, b) M(a, b, x) M(a, b, y) M(a, b, z) M(a, b, w)
#define MPSK_4_4(M) MPSK_4_4_(M, x) MPSK_4_4_(M, y) MPSK_4_4_(M, z) MPSK_4_4_(M, w)
#define MPSK_4_4_(M, a) MPSK_4_4__(M, a, x) MPSK_4_4__(M, a, y) MPSK_4_4__(M, a, z) MPSK_4_4__(M, a, w)
#define MPSK_4_4__(M, a, b) \
  MPSK_4_4___(M, a, b, x) MPSK_4_4___(M, a, b, y) MPSK_4_4___(M, a, b, z) MPSK_4_4___(M, a, b, w)
#define MPSK_4_4___(M, a, b, c) M(a, b, c, x) M(a, b, c, y) M(a, b, c, z) M(a, b, c, w)
#define MPSK_SELECTIONS_2 MPSK_CHOICES(MPSK_2_1, MPSK_2_2, MPSK_2_3, MPSK_2_4)
#define MPSK_SELECTIONS_3 MPSK_CHOICES(MPSK_3_1, MPSK_3_2, MPSK_3_3, MPSK_3_4)
#define MPSK_SELECTIONS_4 MPSK_CHOICES(MPSK_4_1, MPSK_4_2, MPSK_4_3, MPSK_4_4)

MPSK_BEGIN

template <typename T, int n> struct vec;
template <typename T, int n> struct packed_vec;

namespace mpsk_vector {

// What a type is as an operand: its element type, its number of components (0 for a scalar), its vec.
template <typename A> struct operand {
  static constexpr int n = 0;
};
template <typename T, int size> struct operand<vec<T, size>> {
  static constexpr int n = size;
  using element = T;
  using vector = vec<T, size>;
};
template <typename T, int size> struct operand<packed_vec<T, size>> : operand<vec<T, size>> {};
template <typename A> constexpr bool is_vector = operand<A>::n != 0;

// Components that an argument gives to the constructor of a vec<T, n>; -100 for what it cannot take.
template <typename T, typename A, int n = operand<A>::n> constexpr int pieces = -100;
template <typename T, typename A> constexpr int pieces<T, A, 0> = __is_convertible(A, T) ? 1 : -100;
template <typename T, int n> constexpr int pieces<T, vec<T, n>, n> = n;
template <typename T, int n> constexpr int pieces<T, packed_vec<T, n>, n> = n;

// The type of an arithmetic operation between A and B, of which one is a vector: a scalar becomes the other's element.
template <typename A, typename B, int na = operand<A>::n, int nb = operand<B>::n> struct arithmetic {};
template <typename A, typename B, int n> struct arithmetic<A, B, n, n>
    : enable_if<n != 0 && is_same_v<typename operand<A>::element, typename operand<B>::element>,
                typename operand<A>::vector> {};
template <typename T, typename S> constexpr bool scalar_operand =
    __is_convertible(S, T) && (is_floating_point_v<T> || !is_floating_point_v<S>);
template <typename A, typename B, int n> struct arithmetic<A, B, n, 0>
    : enable_if<scalar_operand<typename operand<A>::element, B>, typename operand<A>::vector> {};
template <typename A, typename B, int n> struct arithmetic<A, B, 0, n> : arithmetic<B, A, n, 0> {};
template <typename A, typename B> struct arithmetic<A, B, 0, 0> {};
template <typename A, typename B> using arithmetic_t = typename arithmetic<A, B>::type;

// The component with an index. Steps from the first one, except in constant expressions, which may not.
template <typename T> constexpr T& component(T* first, size_t i, T& x, T& y) {
  return __builtin_is_constant_evaluated() ? i == 0 ? x : y : first[i];
}
template <typename T> constexpr T& component(T* first, size_t i, T& x, T& y, T& z) {
  return __builtin_is_constant_evaluated() ? i == 0 ? x : i == 1 ? y : z : first[i];
}
template <typename T> constexpr T& component(T* first, size_t i, T& x, T& y, T& z, T& w) {
  return __builtin_is_constant_evaluated() ? i == 0 ? x : i == 1 ? y : i == 2 ? z : w : first[i];
}
__attribute__((error("too many values in the braces for this vector"))) void too_many_initializers();

}  // namespace mpsk_vector

// vec<R, n>(f(x), f(y), ...).
#define MPSK_MAP(n, R, f)               \
  if constexpr (n == 2)                 \
    return vec<R, 2>(f(x), f(y));       \
  else if constexpr (n == 3)            \
    return vec<R, 3>(f(x), f(y), f(z)); \
  else                                  \
    return vec<R, 4>(f(x), f(y), f(z), f(w));

// What vec and packed_vec share. Braces may hold fewer values than there are components; the others become zero.
#define MPSK_NAMES_2 x, y
#define MPSK_NAMES_3 x, y, z
#define MPSK_NAMES_4 x, y, z, w
#define MPSK_SCALARS_2 T i, T j
#define MPSK_SCALARS_3 T i, T j, T k
#define MPSK_SCALARS_4 T i, T j, T k, T l
#define MPSK_FROM_SCALARS_2 x(i), y(j)
#define MPSK_FROM_SCALARS_3 x(i), y(j), z(k)
#define MPSK_FROM_SCALARS_4 x(i), y(j), z(k), w(l)
#define MPSK_VECTOR(vec_type, count)                                                                                 \
  T MPSK_NAMES_##count;                                                                                              \
  vec_type() = default;                                                                                              \
  template <typename S, enable_if_t<!mpsk_vector::is_vector<S> && __is_convertible(S, T), int> = 0>                  \
  constexpr vec_type(S scalar) : MPSK_LIST_##count(MPSK_SCALAR) {}                                                   \
  template <typename S,                                                                                              \
            enable_if_t<!mpsk_vector::is_vector<S> && !__is_convertible(S, T) && __is_constructible(T, S), int> = 0> \
  explicit constexpr vec_type(S scalar) : MPSK_LIST_##count(MPSK_SCALAR) {}                                          \
  constexpr vec_type(MPSK_SCALARS_##count) : MPSK_FROM_SCALARS_##count {}                                            \
  template <                                                                                                         \
      typename A, typename B, typename... C,                                                                         \
      enable_if_t<mpsk_vector::pieces<T, A> + mpsk_vector::pieces<T, B> + (0 + ... + mpsk_vector::pieces<T, C>) ==   \
                      count,                                                                                         \
                  int> = 0>                                                                                          \
  constexpr vec_type(A a, B b, C... c) : vec_type(T(0)) {                                                            \
    int i = 0;                                                                                                       \
    append(i, a), append(i, b), (append(i, c), ...);                                                                 \
  }                                                                                                                  \
  constexpr vec_type(std::initializer_list<T> list) : vec_type(T(0)) {                                               \
    if (list.size() > count) mpsk_vector::too_many_initializers();                                                   \
    for (size_t i = 0; i < list.size(); i++) (*this)[i] = list.begin()[i];                                           \
  }                                                                                                                  \
  constexpr T& operator[](size_t i)& { return mpsk_vector::component<T>(&x, i, MPSK_NAMES_##count); }                \
  constexpr const T& operator[](size_t i) const& {                                                                   \
    return mpsk_vector::component<const T>(&x, i, MPSK_NAMES_##count);                                               \
  }                                                                                                                  \
  constexpr T operator[](size_t i) const&& { return mpsk_vector::component<const T>(&x, i, MPSK_NAMES_##count); }    \
  MPSK_COMPOUNDS(vec_type, count)                                                                                    \
  constexpr vec_type& operator++()& { return *this = *this + T(1); }                                                 \
  constexpr vec_type& operator--()& { return *this = *this - T(1); }                                                 \
  constexpr vec_type operator++(int)& {                                                                              \
    vec_type old = *this;                                                                                            \
    *this = *this + T(1);                                                                                            \
    return old;                                                                                                      \
  }                                                                                                                  \
  constexpr vec_type operator--(int)& {                                                                              \
    vec_type old = *this;                                                                                            \
    *this = *this - T(1);                                                                                            \
    return old;                                                                                                      \
  }                                                                                                                  \
  MPSK_SELECTIONS_##count;                                                                                           \
                                                                                                                     \
 private:                                                                                                            \
  template <typename A> constexpr void append(thread int& i, A a) {                                                  \
    if constexpr (!mpsk_vector::is_vector<A>)                                                                        \
      (*this)[i++] = T(a);                                                                                           \
    else                                                                                                             \
      for (int j = 0; j < mpsk_vector::operand<A>::n; j++) (*this)[i++] = a[j];                                      \
  }
// clang-format off
#define MPSK_COMPOUNDS(vec_type, count)                                                                \
  MPSK_COMPOUND(vec_type, count, +) MPSK_COMPOUND(vec_type, count, -) MPSK_COMPOUND(vec_type, count, *) \
  MPSK_COMPOUND(vec_type, count, /) MPSK_COMPOUND(vec_type, count, %) MPSK_COMPOUND(vec_type, count, &) \
  MPSK_COMPOUND(vec_type, count, |) MPSK_COMPOUND(vec_type, count, ^)                                  \
  MPSK_COMPOUND(vec_type, count, <<) MPSK_COMPOUND(vec_type, count, >>)
// clang-format on
#define MPSK_COMPOUND(vec_type, count, op)                                                             \
  template <typename B, typename V = vec<T, count>, typename = decltype(declval<V>() op declval<B>())> \
  constexpr vec_type& operator op##=(B b)& {                                                           \
    return *this = V(*this) op b;                                                                      \
  }

#define MPSK_LIST_2(e) x(e(x)), y(e(y))
#define MPSK_LIST_3(e) x(e(x)), y(e(y)), z(e(z))
#define MPSK_LIST_4(e) x(e(x)), y(e(y)), z(e(z)), w(e(w))
#define MPSK_SCALAR(i) T(scalar)
#define MPSK_COPIED(i) v.i
#define MPSK_CONVERTED(i) T(v.i)

#define MPSK_VEC(count, slots)                                                                   \
  template <typename T> struct alignas(slots * sizeof(T)) vec<T, count> {                        \
    template <typename U, enable_if_t<!is_same_v<T, U>, int> = 0>                                \
    explicit constexpr vec(vec<U, count> v) : MPSK_LIST_##count(MPSK_CONVERTED) {}               \
    template <typename U, enable_if_t<!is_same_v<T, U>, int> = 0>                                \
    explicit constexpr vec(packed_vec<U, count> v) : MPSK_LIST_##count(MPSK_CONVERTED) {}        \
    constexpr vec(packed_vec<T, count> v) : MPSK_LIST_##count(MPSK_COPIED) {}                    \
    MPSK_VECTOR(vec, count)                                                                      \
  };                                                                                             \
  template <typename T> struct packed_vec<T, count> {                                            \
    template <typename U, enable_if_t<!is_same_v<T, U>, int> = 0>                                \
    explicit constexpr packed_vec(vec<U, count> v) : MPSK_LIST_##count(MPSK_CONVERTED) {}        \
    template <typename U, enable_if_t<!is_same_v<T, U>, int> = 0>                                \
    explicit constexpr packed_vec(packed_vec<U, count> v) : MPSK_LIST_##count(MPSK_CONVERTED) {} \
    constexpr packed_vec(vec<T, count> v) : MPSK_LIST_##count(MPSK_COPIED) {}                    \
    MPSK_VECTOR(packed_vec, count)                                                               \
  };
MPSK_VEC(2, 2)
MPSK_VEC(3, 4)
MPSK_VEC(4, 4)
#undef MPSK_VEC
#undef MPSK_VECTOR
#undef MPSK_COMPOUND
#undef MPSK_COMPOUNDS

namespace mpsk_vector {

// What an instrumented kernel tells (compiler/instrument.py).
#ifdef MPSK_INSTRUMENTED
extern "C" void mpsk_zero_division(const struct mpsk_site* site);
extern "C" void mpsk_shift(ulong amount, ulong most, const struct mpsk_site* site);
#define MPSK_ZERO_DIVISION() \
  if (!__builtin_is_constant_evaluated()) mpsk_zero_division(0)
#define MPSK_SHIFTED(amount, most) \
  if (!__builtin_is_constant_evaluated()) mpsk_shift(amount, most, 0)
#else
#define MPSK_ZERO_DIVISION()
#define MPSK_SHIFTED(amount, most)
#endif

// Integer division as the hardware does it: no trap, and a value for every pair.
template <typename T> constexpr T divide_component(T a, T b) {
  if constexpr (is_integral_v<T>) {
    if (b == T(0)) {
      MPSK_ZERO_DIVISION();
      return T(0);
    }
    if (is_signed_v<T> && b == T(-1)) return T(0 - make_unsigned_t<T>(a));
  }
  return T(a / b);
}
template <typename T> constexpr T remainder_component(T a, T b) {
  if (b == T(0)) MPSK_ZERO_DIVISION();
  return b == T(0) || (is_signed_v<T> && b == T(-1)) ? T(0) : T(a % b);
}

}  // namespace mpsk_vector

#define MPSK_OPERATOR(op, R, condition, component)                                                   \
  template <typename A, typename B, typename V = mpsk_vector::arithmetic_t<A, B>,                    \
            typename T = typename mpsk_vector::operand<V>::element, enable_if_t<condition, int> = 0> \
  constexpr auto operator op(A a, B b) {                                                             \
    V u(a), v(b);                                                                                    \
    MPSK_MAP(mpsk_vector::operand<V>::n, R, component)                                               \
  }
#define MPSK_NUMBER !is_same_v<T, bool>
#define MPSK_INTEGRAL is_integral_v<T>
#define MPSK_COMPONENT(i) T(u.i + v.i)
MPSK_OPERATOR(+, T, MPSK_NUMBER, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) T(u.i - v.i)
MPSK_OPERATOR(-, T, MPSK_NUMBER, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) T(u.i* v.i)
MPSK_OPERATOR(*, T, MPSK_NUMBER, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) mpsk_vector::divide_component(u.i, v.i)
MPSK_OPERATOR(/, T, MPSK_NUMBER, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) mpsk_vector::remainder_component(u.i, v.i)
MPSK_OPERATOR(%, T, MPSK_INTEGRAL&& MPSK_NUMBER, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) T(u.i & v.i)
MPSK_OPERATOR(&, T, MPSK_INTEGRAL, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) T(u.i | v.i)
MPSK_OPERATOR(|, T, MPSK_INTEGRAL, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) T(u.i ^ v.i)
MPSK_OPERATOR(^, T, MPSK_INTEGRAL, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) u.i == v.i
MPSK_OPERATOR(==, bool, true, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) u.i != v.i
MPSK_OPERATOR(!=, bool, true, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) u.i < v.i
MPSK_OPERATOR(<, bool, true, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) u.i <= v.i
MPSK_OPERATOR(<=, bool, true, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) u.i > v.i
MPSK_OPERATOR(>, bool, true, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) u.i >= v.i
MPSK_OPERATOR(>=, bool, true, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) (u.i && v.i)
MPSK_OPERATOR(&&, bool, MPSK_INTEGRAL, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) (u.i || v.i)
MPSK_OPERATOR(||, bool, MPSK_INTEGRAL, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#undef MPSK_OPERATOR
#undef MPSK_NUMBER
#undef MPSK_INTEGRAL

namespace mpsk_vector {

// Shifts: the count is a scalar or a vector of any integer type, and its low bits count.
template <typename A, typename B, bool = is_vector<A> && !is_vector<B> && is_integral_v<B>> struct shift_of {};
template <typename A, typename B> struct shift_of<A, B, true>
    : enable_if<is_integral_v<typename operand<A>::element>, vec<B, operand<A>::n>> {};
template <typename T, int n, typename U> struct shift_of<vec<T, n>, vec<U, n>, false>
    : enable_if<is_integral_v<T> && is_integral_v<U>, vec<U, n>> {};
template <typename T, int n, typename U> struct shift_of<vec<T, n>, packed_vec<U, n>, false>
    : shift_of<vec<T, n>, vec<U, n>> {};
template <typename T, int n, typename B> struct shift_of<packed_vec<T, n>, B, false> : shift_of<vec<T, n>, B> {};

template <typename T, typename B> constexpr ulong shift_count(B count) {
  MPSK_SHIFTED(ulong(count), sizeof(T) * 8 - 1);
  return ulong(count) & (sizeof(T) * 8 - 1);
}
#undef MPSK_ZERO_DIVISION
#undef MPSK_SHIFTED
}  // namespace mpsk_vector

#define MPSK_SHIFT(op, component)                                                            \
  template <typename A, typename B, typename C = typename mpsk_vector::shift_of<A, B>::type> \
  constexpr auto operator op(A a, B b) {                                                     \
    using V = typename mpsk_vector::operand<A>::vector;                                      \
    using T = typename mpsk_vector::operand<A>::element;                                     \
    V u(a);                                                                                  \
    C v(b);                                                                                  \
    MPSK_MAP(mpsk_vector::operand<V>::n, T, component)                                       \
  }
#define MPSK_COMPONENT(i) T(make_unsigned_t<T>(u.i) << mpsk_vector::shift_count<T>(v.i))
MPSK_SHIFT(<<, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) T(u.i >> mpsk_vector::shift_count<T>(v.i))
MPSK_SHIFT(>>, MPSK_COMPONENT)
#undef MPSK_COMPONENT
#undef MPSK_SHIFT

#define MPSK_UNARY(op, R, condition)                                                                 \
  template <typename A, typename V = typename mpsk_vector::operand<A>::vector,                       \
            typename T = typename mpsk_vector::operand<V>::element, enable_if_t<condition, int> = 0> \
  constexpr auto operator op(A a) {                                                                  \
    V u(a);                                                                                          \
    MPSK_MAP(mpsk_vector::operand<V>::n, R, MPSK_COMPONENT)                                          \
  }
#define MPSK_COMPONENT(i) T(-u.i)
MPSK_UNARY(-, T, (!is_same_v<T, bool>))
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) u.i
MPSK_UNARY(+, T, (!is_same_v<T, bool>))
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) T(~u.i)
MPSK_UNARY(~, T, (is_integral_v<T> && !is_same_v<T, bool>))
#undef MPSK_COMPONENT
#define MPSK_COMPONENT(i) !u.i
MPSK_UNARY(!, bool, is_integral_v<T>)
#undef MPSK_COMPONENT
#undef MPSK_UNARY

// The overloads for vectors of a function that exists for scalars: T name(T), T name(T, T), ...; R is the result's
// type.
#define MPSK_LIFT1_TO(R, T, name)                                                           \
  inline vec<R, 2> name(vec<T, 2> a) { return vec<R, 2>(name(a.x), name(a.y)); }            \
  inline vec<R, 3> name(vec<T, 3> a) { return vec<R, 3>(name(a.x), name(a.y), name(a.z)); } \
  inline vec<R, 4> name(vec<T, 4> a) { return vec<R, 4>(name(a.x), name(a.y), name(a.z), name(a.w)); }
#define MPSK_LIFT2_TO(R, T, name)                                                                                 \
  inline vec<R, 2> name(vec<T, 2> a, vec<T, 2> b) { return vec<R, 2>(MPSK_CALL2(name, x), MPSK_CALL2(name, y)); } \
  inline vec<R, 3> name(vec<T, 3> a, vec<T, 3> b) {                                                               \
    return vec<R, 3>(MPSK_CALL2(name, x), MPSK_CALL2(name, y), MPSK_CALL2(name, z));                              \
  }                                                                                                               \
  inline vec<R, 4> name(vec<T, 4> a, vec<T, 4> b) {                                                               \
    return vec<R, 4>(MPSK_CALL2(name, x), MPSK_CALL2(name, y), MPSK_CALL2(name, z), MPSK_CALL2(name, w));         \
  }
#define MPSK_LIFT3_TO(C, T, name)                                                                         \
  inline vec<T, 2> name(vec<T, 2> a, vec<T, 2> b, vec<C, 2> c) {                                          \
    return vec<T, 2>(MPSK_CALL3(name, x), MPSK_CALL3(name, y));                                           \
  }                                                                                                       \
  inline vec<T, 3> name(vec<T, 3> a, vec<T, 3> b, vec<C, 3> c) {                                          \
    return vec<T, 3>(MPSK_CALL3(name, x), MPSK_CALL3(name, y), MPSK_CALL3(name, z));                      \
  }                                                                                                       \
  inline vec<T, 4> name(vec<T, 4> a, vec<T, 4> b, vec<C, 4> c) {                                          \
    return vec<T, 4>(MPSK_CALL3(name, x), MPSK_CALL3(name, y), MPSK_CALL3(name, z), MPSK_CALL3(name, w)); \
  }
#define MPSK_CALL2(name, i) name(a.i, b.i)
#define MPSK_CALL3(name, i) name(a.i, b.i, c.i)
#define MPSK_LIFT1(T, name) MPSK_LIFT1_TO(T, T, name)
#define MPSK_LIFT2(T, name) MPSK_LIFT2_TO(T, T, name)
#define MPSK_LIFT3(T, name) MPSK_LIFT3_TO(T, T, name)

MPSK_END

// The bits of one scalar or vector as another of the same size.
template <typename T, typename U> __attribute__((always_inline)) constexpr T as_type(U value) {
  static_assert(metal::is_arithmetic_v<T> || metal::mpsk_vector::is_vector<T>, "as_type gives a scalar or a vector");
  static_assert(metal::is_arithmetic_v<U> || metal::mpsk_vector::is_vector<U>, "as_type takes a scalar or a vector");
  static_assert(sizeof(T) == sizeof(U), "as_type needs types of the same size");
  return __builtin_bit_cast(T, value);
}

// bool2 .. float4 and packed_char2 .. packed_float4, in namespace metal and outside it.
#define MPSK_ALIASES(T, name) \
  namespace metal {           \
  typedef vec<T, 2> name##2;  \
  typedef vec<T, 3> name##3;  \
  typedef vec<T, 4> name##4;  \
  }                           \
  using metal::name##2;       \
  using metal::name##3;       \
  using metal::name##4;
#define MPSK_PACKED_ALIASES(T, name)         \
  MPSK_ALIASES(T, name)                      \
  namespace metal {                          \
  typedef packed_vec<T, 2> packed_##name##2; \
  typedef packed_vec<T, 3> packed_##name##3; \
  typedef packed_vec<T, 4> packed_##name##4; \
  }                                          \
  using metal::packed_##name##2;             \
  using metal::packed_##name##3;             \
  using metal::packed_##name##4;
MPSK_ALIASES(bool, bool)
MPSK_PACKED_ALIASES(char, char)
MPSK_PACKED_ALIASES(uchar, uchar)
MPSK_PACKED_ALIASES(short, short)
MPSK_PACKED_ALIASES(ushort, ushort)
MPSK_PACKED_ALIASES(int, int)
MPSK_PACKED_ALIASES(uint, uint)
MPSK_PACKED_ALIASES(long, long)
MPSK_PACKED_ALIASES(ulong, ulong)
MPSK_PACKED_ALIASES(bfloat, bfloat)
MPSK_PACKED_ALIASES(float, float)
#undef half
MPSK_PACKED_ALIASES(_Float16, half)
#define half _Float16
#undef MPSK_ALIASES
#undef MPSK_PACKED_ALIASES
