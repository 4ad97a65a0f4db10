// Which matmul kernel runs: the first row that fits.
#pragma once

#include <cstdint>
#include <iterator>
#include <limits>

#include "matmul_variants.h"

namespace mpsk {

struct matmul_tile {
  int64_t bm, bn, bk;
  constexpr bool operator==(const matmul_tile&) const = default;
};

struct matmul_choice {
  int family;           // this Apple GPU family and newer ones
  int64_t max_m;        // rows of the product, after batches that share b became rows
  int64_t max_n;        // columns
  int64_t max_outputs;  // elements of out, all batches together
  matmul_tile use;
  const char* evidence;
};

inline constexpr int64_t matmul_any = std::numeric_limits<int64_t>::max();

inline constexpr matmul_choice matmul_choices[] = {
    {.family = 7,
     .max_m = 32,
     .max_n = matmul_any,
     .max_outputs = matmul_any,
     .use = {32, 32, 32},
     .evidence = "unmeasured: at least half of a 64x64 tile would be padding"},
    {.family = 7,
     .max_m = matmul_any,
     .max_n = 32,
     .max_outputs = matmul_any,
     .use = {32, 32, 32},
     .evidence = "unmeasured: at least half of a 64x64 tile would be padding"},
    {.family = 7,
     .max_m = matmul_any,
     .max_n = matmul_any,
     .max_outputs = 60 * 64 * 64,
     .use = {32, 32, 32},
     .evidence = "unmeasured: 24 simdgroups fill a core, and fewer than 60 threadgroups of 4 would not fill 10 cores"},
    {.family = 7,
     .max_m = matmul_any,
     .max_n = matmul_any,
     .max_outputs = matmul_any,
     .use = {64, 64, 16},
     .evidence =
         "unmeasured: half as many fragment loads for each multiplication as 32x32, and half the reads of a and b"},
};

constexpr const matmul_choice& choose_matmul(int family, int64_t m, int64_t n, int64_t outputs) {
  for (const matmul_choice& choice : matmul_choices) {
    if (family >= choice.family && m <= choice.max_m && n <= choice.max_n && outputs <= choice.max_outputs) {
      return choice;
    }
  }
  return *(std::end(matmul_choices) - 1);
}

// A choice can only name kernels that exist, one for each of the three dtypes.
static_assert([] {
  for (const matmul_choice& choice : matmul_choices) {
    int built = 0;
#define MPSK_COUNT(dtype, type, bm, bn, bk) built += choice.use == matmul_tile{bm, bn, bk};
    MATMUL_TILE_VARIANTS(MPSK_COUNT)
#undef MPSK_COUNT
    if (built != 3) return false;
  }
  return true;
}());

}  // namespace mpsk
