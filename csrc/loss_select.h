// How many rows of logits linear_cross_entropy holds at once: the first row that fits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

namespace mpsk {

struct loss_choice {
  int family;            // this Apple GPU family and newer ones
  int64_t max_elements;  // of logits held at once, rows times all classes
  int64_t min_rows;      // however many classes there are
  const char* evidence;
};

inline constexpr loss_choice loss_choices[] = {
    {.family = 7,
     .max_elements = 1 << 26,
     .min_rows = 64,
     .evidence =
         "unmeasured: 128 MB in half, and with 128k classes 512 rows, which fill tiles of 64 rows; the weight is "
         "read once for each such chunk"},
};

// Rows at once, of `rows` with `classes` each.
constexpr int64_t choose_chunk(int family, int64_t rows, int64_t classes) {
  const loss_choice* choice = std::end(loss_choices) - 1;
  for (const loss_choice& candidate : loss_choices) {
    if (family >= candidate.family) {
      choice = &candidate;
      break;
    }
  }
  const int64_t fit = choice->max_elements / std::max<int64_t>(classes, 1) / choice->min_rows * choice->min_rows;
  return std::clamp<int64_t>(fit, choice->min_rows, std::max<int64_t>(rows, choice->min_rows));
}

}  // namespace mpsk
