// simd_* and quad_* functions (MSL 6.9.2, 6.9.3): values that cross lanes.
//
// Every lane brings an operand to a meeting; the device calls one function for all lanes that reached it, which fills
// in each lane's result. A quadgroup is a simdgroup of four: the same functions, with the lanes of other quads left
// out.
#pragma once

#include "runtime.h"

namespace metal {

// The result of a ballot. Bits above the lanes of the group are zero here and undefined in Metal.
template <int Width>
struct mpsk_vote {
  typedef ulong vote_t;
  mpsk_vote() = default;
  explicit constexpr mpsk_vote(vote_t bits) : bits(bits) {}
  explicit constexpr operator vote_t() const { return bits; }
  bool all() const { return bits == (1ul << Width) - 1; }
  bool any() const { return bits != 0; }
  vote_t bits;
};
typedef mpsk_vote<32> simd_vote;
typedef mpsk_vote<4> quad_vote;

namespace mpsk_group {

template <typename T>
constexpr bool is_integer = false;
template <typename T>
constexpr bool is_float = false;
#define MPSK_MARK(KIND, T) \
  template <>              \
  inline constexpr bool KIND<T> = true;
MPSK_MARK(is_integer, char)
MPSK_MARK(is_integer, uchar)
MPSK_MARK(is_integer, short)
MPSK_MARK(is_integer, ushort)
MPSK_MARK(is_integer, int)
MPSK_MARK(is_integer, uint)
MPSK_MARK(is_float, half)
MPSK_MARK(is_float, bfloat)
MPSK_MARK(is_float, float)
#undef MPSK_MARK

template <typename T>
struct element {
  using type = T;
};
template <typename T, int N>
struct element<vec<T, N>> {
  using type = T;
};

// What may cross lanes: numbers and vectors of them, but not bool, long, ulong or size_t.
template <typename T>
constexpr bool crosses = is_integer<typename element<T>::type> || is_float<typename element<T>::type>;
template <typename T>
constexpr bool counts = is_integer<typename element<T>::type>;

template <bool Condition, typename T>
struct when {};
template <typename T>
struct when<true, T> {
  using type = T;
};

constexpr unsigned no_lane = ~0u;

// A lane's operand and result. `source` is the lane that a shuffle reads, or no_lane for `other`.
template <typename T>
struct operand {
  T value;
  T other;
  unsigned source;
};

template <int Width>
inline unsigned members(unsigned active, unsigned lane) {
  return Width == 32 ? active : active & 0xfu << (lane & ~3u);
}

template <typename T>
inline operand<T>& at(void* const* lanes, unsigned lane) {
  return *(operand<T>*)lanes[lane];
}

template <typename T>
inline void shuffle(void* const* lanes, unsigned active) {
  T results[MPSK_SIMD_WIDTH];
  for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    if (!(active >> lane & 1)) continue;
    const operand<T>& mine = at<T>(lanes, lane);
    if (mine.source == no_lane) {
      results[lane] = mine.other;
    } else {
      if (mine.source >= MPSK_SIMD_WIDTH) mpsk_fault("a simd or quad function reads a lane outside the group");
      if (!(active >> mine.source & 1)) mpsk_fault("a simd or quad function reads an inactive lane");
      results[lane] = at<T>(lanes, mine.source).value;
    }
  }
  for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    if (active >> lane & 1) at<T>(lanes, lane).value = results[lane];
  }
}

template <typename T>
__attribute__((always_inline, convergent)) inline T exchange(T value, unsigned source, T other) {
  operand<T> mine = {value, other, source};
  mpsk_simd(&mine, &shuffle<T>);
  return mine.value;
}

// A reduction adds pairs of lanes at distance 1, 2, 4, ...: the order of additions is the same in every run.
template <typename T, typename Op, int Width>
inline void reduce(void* const* lanes, unsigned active) {
  for (unsigned first = 0; first < MPSK_SIMD_WIDTH; first += Width) {
    T values[Width];
    bool present[Width];
    for (unsigned i = 0; i < Width; ++i) {
      present[i] = active >> (first + i) & 1;
      if (present[i]) values[i] = at<T>(lanes, first + i).value;
    }
    for (unsigned step = 1; step < Width; step *= 2) {
      for (unsigned i = 0; i + step < Width; i += 2 * step) {
        if (!present[i + step]) continue;
        if (present[i]) {
          values[i] = Op::apply(values[i], values[i + step]);
        } else {
          values[i] = values[i + step];
        }
        present[i] = true;
      }
    }
    for (unsigned i = 0; i < Width; ++i) {
      if (active >> (first + i) & 1) at<T>(lanes, first + i).value = values[0];
    }
  }
}

template <typename T, typename Op, int Width, bool Inclusive>
inline void scan(void* const* lanes, unsigned active) {
  for (unsigned first = 0; first < MPSK_SIMD_WIDTH; first += Width) {
    T total = Op::template identity<T>();
    for (unsigned lane = first; lane < first + Width; ++lane) {
      if (!(active >> lane & 1)) continue;
      operand<T>& mine = at<T>(lanes, lane);
      const T before = total;
      total = Op::apply(total, mine.value);
      mine.value = Inclusive ? total : before;
    }
  }
}

template <typename T>
__attribute__((always_inline, convergent)) inline T meet(T value, void (*combine)(void* const*, unsigned)) {
  operand<T> mine = {value, value, 0};
  mpsk_simd(&mine, combine);
  return mine.value;
}

struct sum {
  template <typename T>
  static T apply(T a, T b) {
    return a + b;
  }
  template <typename T>
  static T identity() {
    return T(0.0f);
  }
};
struct product {
  template <typename T>
  static T apply(T a, T b) {
    return a * b;
  }
  template <typename T>
  static T identity() {
    return T(1.0f);
  }
};
struct minimum {
  template <typename T>
  static T apply(T a, T b) {
    return min(a, b);
  }
  static bfloat apply(bfloat a, bfloat b) { return bfloat(min(float(a), float(b))); }
  template <int N>
  static vec<bfloat, N> apply(vec<bfloat, N> a, vec<bfloat, N> b) {
    return vec<bfloat, N>(min(vec<float, N>(a), vec<float, N>(b)));
  }
};
struct maximum {
  template <typename T>
  static T apply(T a, T b) {
    return max(a, b);
  }
  static bfloat apply(bfloat a, bfloat b) { return bfloat(max(float(a), float(b))); }
  template <int N>
  static vec<bfloat, N> apply(vec<bfloat, N> a, vec<bfloat, N> b) {
    return vec<bfloat, N>(max(vec<float, N>(a), vec<float, N>(b)));
  }
};
struct bit_and {
  template <typename T>
  static T apply(T a, T b) {
    return a & b;
  }
};
struct bit_or {
  template <typename T>
  static T apply(T a, T b) {
    return a | b;
  }
};
struct bit_xor {
  template <typename T>
  static T apply(T a, T b) {
    return a ^ b;
  }
};

template <int Width>
inline void ballot(void* const* lanes, unsigned active) {
  unsigned bits = 0;
  for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    if (active >> lane & 1) bits |= (at<uint>(lanes, lane).value != 0 ? 1u : 0u) << lane;
  }
  for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    if (active >> lane & 1) at<uint>(lanes, lane).value = Width == 32 ? bits : bits >> (lane & ~3u) & 0xfu;
  }
}

template <int Width>
inline unsigned lane_in_group() {
  return mpsk::self().lane & (Width - 1);
}
// The lane of the simdgroup for a lane of the running thread's group.
template <int Width>
inline unsigned absolute(unsigned lane) {
  return lane >= Width ? MPSK_SIMD_WIDTH : (mpsk::self().lane & ~unsigned(Width - 1)) + lane;
}

}  // namespace mpsk_group

#define MPSK_GROUP_FUNCTION __attribute__((always_inline, convergent)) inline
#define MPSK_WHEN(CONDITION, T) typename mpsk_group::when<mpsk_group::CONDITION<T>, T>::type

#define MPSK_GROUP_REDUCTION(NAME, WIDTH, OP, CONDITION)                          \
  template <typename T>                                                           \
  MPSK_GROUP_FUNCTION MPSK_WHEN(CONDITION, T) NAME(T data) {                      \
    return mpsk_group::meet(data, &mpsk_group::reduce<T, mpsk_group::OP, WIDTH>); \
  }
#define MPSK_GROUP_SCAN(NAME, WIDTH, OP, INCLUSIVE)                                        \
  template <typename T>                                                                    \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) NAME(T data) {                                 \
    return mpsk_group::meet(data, &mpsk_group::scan<T, mpsk_group::OP, WIDTH, INCLUSIVE>); \
  }

#define MPSK_GROUP_FUNCTIONS(GROUP, WIDTH)                                                                             \
  MPSK_GROUP_REDUCTION(GROUP##_sum, WIDTH, sum, crosses)                                                               \
  MPSK_GROUP_REDUCTION(GROUP##_product, WIDTH, product, crosses)                                                       \
  MPSK_GROUP_REDUCTION(GROUP##_min, WIDTH, minimum, crosses)                                                           \
  MPSK_GROUP_REDUCTION(GROUP##_max, WIDTH, maximum, crosses)                                                           \
  MPSK_GROUP_REDUCTION(GROUP##_and, WIDTH, bit_and, counts)                                                            \
  MPSK_GROUP_REDUCTION(GROUP##_or, WIDTH, bit_or, counts)                                                              \
  MPSK_GROUP_REDUCTION(GROUP##_xor, WIDTH, bit_xor, counts)                                                            \
  MPSK_GROUP_SCAN(GROUP##_prefix_inclusive_sum, WIDTH, sum, true)                                                      \
  MPSK_GROUP_SCAN(GROUP##_prefix_exclusive_sum, WIDTH, sum, false)                                                     \
  MPSK_GROUP_SCAN(GROUP##_prefix_inclusive_product, WIDTH, product, true)                                              \
  MPSK_GROUP_SCAN(GROUP##_prefix_exclusive_product, WIDTH, product, false)                                             \
                                                                                                                       \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_broadcast(T data, ushort lane) {                                   \
    return mpsk_group::exchange(data, mpsk_group::absolute<WIDTH>(lane), data);                                        \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_shuffle(T data, ushort lane) {                                     \
    return mpsk_group::exchange(data, mpsk_group::absolute<WIDTH>(lane), data);                                        \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_shuffle_xor(T data, ushort mask) {                                 \
    return mpsk_group::exchange(data, mpsk_group::absolute<WIDTH>(mpsk_group::lane_in_group<WIDTH>() ^ mask), data);   \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_shuffle_up(T data, ushort delta) {                                 \
    const unsigned lane = mpsk_group::lane_in_group<WIDTH>();                                                          \
    return mpsk_group::exchange(data, lane < delta ? mpsk_group::no_lane : mpsk_group::absolute<WIDTH>(lane - delta),  \
                                data);                                                                                 \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_shuffle_down(T data, ushort delta) {                               \
    const unsigned lane = mpsk_group::lane_in_group<WIDTH>() + delta;                                                  \
    return mpsk_group::exchange(data, lane >= WIDTH ? mpsk_group::no_lane : mpsk_group::absolute<WIDTH>(lane), data);  \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_shuffle_rotate_up(T data, ushort delta) {                          \
    const unsigned lane = (mpsk_group::lane_in_group<WIDTH>() - delta) & (WIDTH - 1);                                  \
    return mpsk_group::exchange(data, mpsk_group::absolute<WIDTH>(lane), data);                                        \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_shuffle_rotate_down(T data, ushort delta) {                        \
    const unsigned lane = (mpsk_group::lane_in_group<WIDTH>() + delta) & (WIDTH - 1);                                  \
    return mpsk_group::exchange(data, mpsk_group::absolute<WIDTH>(lane), data);                                        \
  }                                                                                                                    \
  /* Lanes past the edge of their segment of `modulo` lanes read from `filling`, as if it were the next segment. */    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T)                                                                            \
      GROUP##_shuffle_and_fill_up(T data, T filling, ushort delta, ushort modulo = WIDTH) {                            \
    const unsigned lane = mpsk_group::lane_in_group<WIDTH>(), start = lane & ~unsigned(modulo - 1);                    \
    const bool fill = lane - start < delta;                                                                            \
    const unsigned from = fill ? lane + modulo - delta : lane - delta;                                                 \
    const T inside = mpsk_group::exchange(data, fill ? mpsk_group::no_lane : mpsk_group::absolute<WIDTH>(from), data); \
    const T outside =                                                                                                  \
        mpsk_group::exchange(filling, fill ? mpsk_group::absolute<WIDTH>(from) : mpsk_group::no_lane, inside);         \
    return outside;                                                                                                    \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T)                                                                            \
      GROUP##_shuffle_and_fill_down(T data, T filling, ushort delta, ushort modulo = WIDTH) {                          \
    const unsigned lane = mpsk_group::lane_in_group<WIDTH>(), end = (lane & ~unsigned(modulo - 1)) + modulo;           \
    const bool fill = lane + delta >= end;                                                                             \
    const unsigned from = fill ? lane + delta - modulo : lane + delta;                                                 \
    const T inside = mpsk_group::exchange(data, fill ? mpsk_group::no_lane : mpsk_group::absolute<WIDTH>(from), data); \
    const T outside =                                                                                                  \
        mpsk_group::exchange(filling, fill ? mpsk_group::absolute<WIDTH>(from) : mpsk_group::no_lane, inside);         \
    return outside;                                                                                                    \
  }                                                                                                                    \
  MPSK_GROUP_FUNCTION GROUP##_vote GROUP##_ballot(bool expr) {                                                         \
    return GROUP##_vote(GROUP##_vote::vote_t(mpsk_group::meet(uint(expr), &mpsk_group::ballot<WIDTH>)));               \
  }                                                                                                                    \
  MPSK_GROUP_FUNCTION GROUP##_vote GROUP##_active_threads_mask() { return GROUP##_ballot(true); }                      \
  MPSK_GROUP_FUNCTION bool GROUP##_all(bool expr) {                                                                    \
    return mpsk_group::meet(uint(!expr), &mpsk_group::ballot<WIDTH>) == 0;                                             \
  }                                                                                                                    \
  MPSK_GROUP_FUNCTION bool GROUP##_any(bool expr) {                                                                    \
    return mpsk_group::meet(uint(expr), &mpsk_group::ballot<WIDTH>) != 0;                                              \
  }                                                                                                                    \
  MPSK_GROUP_FUNCTION bool GROUP##_is_first() {                                                                        \
    const uint active = mpsk_group::meet(1u, &mpsk_group::ballot<WIDTH>);                                              \
    return uint(__builtin_ctz(active)) == mpsk_group::lane_in_group<WIDTH>();                                          \
  }                                                                                                                    \
  template <typename T>                                                                                                \
  MPSK_GROUP_FUNCTION MPSK_WHEN(crosses, T) GROUP##_broadcast_first(T data) {                                          \
    const uint active = mpsk_group::meet(1u, &mpsk_group::ballot<WIDTH>);                                              \
    return mpsk_group::exchange(data, mpsk_group::absolute<WIDTH>(uint(__builtin_ctz(active))), data);                 \
  }

MPSK_GROUP_FUNCTIONS(simd, 32)
MPSK_GROUP_FUNCTIONS(quad, 4)

#undef MPSK_GROUP_FUNCTIONS
#undef MPSK_GROUP_SCAN
#undef MPSK_GROUP_REDUCTION
#undef MPSK_WHEN
#undef MPSK_GROUP_FUNCTION

}  // namespace metal
