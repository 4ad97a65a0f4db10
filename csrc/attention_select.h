// Which attention kernel runs: the first row that fits.
#pragma once

#include <cstdint>
#include <iterator>

#include "attention_variants.h"

namespace mpsk {

struct attention_choice {
  int family;     // this Apple GPU family and newer ones
  int64_t max_d;  // head dimension
  int64_t bk;     // keys of a block
  const char* evidence;
};

inline constexpr attention_choice attention_choices[] = {
    {.family = 7,
     .max_d = 96,
     .bk = 32,
     .evidence = "unmeasured: the most keys between two barriers that fit 32 KB in f32"},
    {.family = 7,
     .max_d = 128,
     .bk = 16,
     .evidence =
         "unmeasured: 32 keys in f32 take 33 KB; 16 in f16 leave room for 6 threadgroups, 24 simdgroups, a core"},
};

constexpr const attention_choice& choose_attention(int family, int64_t d) {
  for (const attention_choice& choice : attention_choices) {
    if (family >= choice.family && d <= choice.max_d) return choice;
  }
  return *(std::end(attention_choices) - 1);
}

// The head dimensions that kernels exist for: those of f32, and as many for the other dtypes.
#define MPSK_F32_f32(d) d,
#define MPSK_F32_f16(d)
#define MPSK_F32_bf16(d)
#define MPSK_HEAD_DIM(dtype, type, d, bk) MPSK_F32_##dtype(d)
inline constexpr int64_t attention_head_dims[] = {ATTENTION_FLASH_VARIANTS(MPSK_HEAD_DIM)};
#undef MPSK_HEAD_DIM
#undef MPSK_F32_f32
#undef MPSK_F32_f16
#undef MPSK_F32_bf16

// A choice can only name kernels that exist, one for each of the three dtypes.
static_assert([] {
  for (const int64_t head_dim : attention_head_dims) {
    int built = 0;
#define MPSK_COUNT(dtype, type, d, block) built += d == head_dim && block == choose_attention(7, d).bk;
    ATTENTION_FLASH_VARIANTS(MPSK_COUNT)
#undef MPSK_COUNT
    if (built != 3) return false;
  }
  return true;
}());

}  // namespace mpsk
