// How many heads a thread rotates: the first row that fits.
#pragma once

#include <cstdint>
#include <iterator>

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

}  // namespace mpsk
