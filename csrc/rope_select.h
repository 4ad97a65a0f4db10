// How many heads a thread rotates, and which kernel norms them: the first row that fits.
#pragma once

#include <cstdint>
#include <iterator>
#include <string_view>

#include "rope_params.h"
#include "rope_variants.h"

namespace mpsk {

struct rope_choice {
  int family;           // this Apple GPU family and newer ones
  int64_t min_threads;  // that one head for each would make
  int64_t heads_per_thread;
  const char* evidence;
};

inline constexpr rope_choice rope_choices[] = {
    {.family = 7,
     .min_threads = 1 << 20,
     .heads_per_thread = 8,
     .evidence = "unmeasured: 2^17 threads remain, more than 40 cores hold; rotations are computed once for 8 heads"},
    {.family = 7,
     .min_threads = 1 << 17,
     .heads_per_thread = 4,
     .evidence = "unmeasured: 2^15 threads remain, which fill 10 cores"},
    {.family = 7,
     .min_threads = 0,
     .heads_per_thread = 1,
     .evidence = "unmeasured: few threads, of which no core should be short"},
};

constexpr const rope_choice& choose_rope(int family, int64_t threads) {
  for (const rope_choice& choice : rope_choices) {
    if (family >= choice.family && threads >= choice.min_threads) return choice;
  }
  return *(std::end(rope_choices) - 1);
}

struct rope_norm_choice {
  int family;             // this Apple GPU family and newer ones
  int64_t max_quads;      // of a head: of four pairs that are turned, or four columns that are not
  std::string_view tile;  // of rope_norm_rows and rope_norm_backward
  const char* evidence;
};

inline constexpr rope_norm_choice rope_norm_choices[] = {
    {.family = 7,
     .max_quads = 32,
     .tile = "_d128",
     .evidence =
         "unmeasured: two loads of four columns for each thread; a head of 128 takes 16 threads, of 256 all 32"},
    {.family = 7,
     .max_quads = 64,
     .tile = "_d256",
     .evidence = "unmeasured: a head of 256 of which a quarter is turned; 56 registers for it in backward, of 128"},
    {.family = 7,
     .max_quads = 160,
     .tile = "_d512",
     .evidence = "unmeasured: what no other holds, in registers as far as a core has them"},
};

constexpr const rope_norm_choice& choose_rope_norm(int family, int64_t quads) {
  for (const rope_norm_choice& choice : rope_norm_choices) {
    if (family >= choice.family && quads <= choice.max_quads) return choice;
  }
  return *(std::end(rope_norm_choices) - 1);
}

// The most quads that a head has: three of four pairs, or columns, may be missing in each of its two parts.
static_assert(rope_norm_max_columns / 4 + 1 <= (std::end(rope_norm_choices) - 1)->max_quads);

// A choice can only name kernels that exist, and heads that they hold.
constexpr bool rope_norm_fits(const rope_norm_choice& choice, std::string_view dtype) {
  struct {
    std::string_view dtype, tile;
    int64_t quads;
  } constexpr rows[] =
      {
#define MPSK_ROW(dtype, type, columns, quads) {#dtype, "_d" #columns, quads},
          ROPE_NORM_ROWS_VARIANTS(MPSK_ROW)},
              backward[] = {ROPE_NORM_BACKWARD_VARIANTS(MPSK_ROW)
#undef MPSK_ROW
              };
  const auto holds = [&](const auto& variants) {
    for (const auto& variant : variants) {
      if (variant.dtype == dtype && variant.tile == choice.tile) return choice.max_quads <= 32 * variant.quads;
    }
    return false;
  };
  return holds(rows) && holds(backward);
}
constexpr bool rope_norm_choices_fit() {
  for (const rope_norm_choice& choice : rope_norm_choices) {
    for (std::string_view dtype : {"f32", "f16", "bf16"}) {
      if (!rope_norm_fits(choice, dtype)) return false;
    }
  }
  return true;
}
static_assert(rope_norm_choices_fit());

}  // namespace mpsk
