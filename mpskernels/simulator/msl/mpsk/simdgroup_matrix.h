// simdgroup_matrix (MSL 2.4, 6.7): 8x8 matrices held by a simdgroup together. Visible after <metal_simdgroup_matrix>.
//
// Matrix operations are executed by the whole simdgroup in uniform control flow, so one lane, the first, performs each
// of them on a matrix that it alone holds whole, and the other lanes pass by. Lanes meet only where a program looks at
// its own share of a matrix, through thread_elements(): from then on, until the next operation on it, the matrix is
// distributed. Each lane's object carries that state, which is the same in all of them as control flow is uniform. A
// lane that has seen no matrix distributed passes by without a look at its objects, which would cost more than the
// operation.
#pragma once

#include "runtime.h"

namespace metal {
namespace __simdgroup_matrix {

template <typename T>
constexpr bool is_matrix_element = false;
template <>
inline constexpr bool is_matrix_element<half> = true;
template <>
inline constexpr bool is_matrix_element<bfloat> = true;
template <>
inline constexpr bool is_matrix_element<float> = true;

// Row and first column of the two elements that a lane holds.
inline uint row_of(uint lane) { return ((lane >> 1) & 3) | ((lane >> 4) & 1) << 2; }
inline uint column_of(uint lane) { return (lane & 1) << 1 | ((lane >> 3) & 1) << 2; }

inline bool leads() { return mpsk::self().lane == 0; }
inline bool passes_by() { return mpsk::stack_slot().passes_by != 0; }

// What an instrumented kernel tells of its operations on matrices (compiler/instrument.py): that one is here, with so
// many multiply-accumulates, and the memory that the first lane goes through for all. It gets an address to use.
#ifdef MPSK_INSTRUMENTED
extern "C" void mpsk_mark_matrix(unsigned multiply_accumulates);
extern "C" void* mpsk_matrix_memory(const void* memory, ulong elements_per_row, ulong x, ulong y, unsigned element_size,
                                    bool transpose, bool write, const mpsk_site* site);
#define MPSK_MARK_MATRIX(multiply_accumulates) mpsk_mark_matrix(multiply_accumulates)
#define MPSK_MATRIX_MEMORY(T, memory, write)                                                                      \
  (T*)mpsk_matrix_memory(memory, elements_per_row, matrix_origin.x, matrix_origin.y, sizeof(T), transpose_matrix, \
                         write, 0)
#else
#define MPSK_MARK_MATRIX(multiply_accumulates)
#define MPSK_MATRIX_MEMORY(T, memory, write) memory
#endif

typedef float float8 __attribute__((ext_vector_type(8)));

template <typename T>
inline float8 read_row(const T* row) {
  float8 values;
  for (int i = 0; i < 8; ++i) values[i] = float(row[i]);
  return values;
}
template <typename T>
inline void write_row(T* row, float8 values) {
  for (int i = 0; i < 8; ++i) row[i] = T(values[i]);
}

template <typename T, int Cols, int Rows = Cols>
struct simdgroup_matrix;

// Gives each lane its two elements of the matrix that the first lane holds, or takes them back.
template <typename T, bool Distribute>
inline void share(void* const* lanes, unsigned active) {
  using matrix = simdgroup_matrix<T, 8>;
  if (active != 0xffffffffu) mpsk_fault("a simdgroup_matrix operation needs all 32 lanes of the simdgroup");
  matrix& whole = *(matrix*)lanes[0];
  for (uint lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    matrix& its = *(matrix*)lanes[lane];
    T* pair = &whole.elements[row_of(lane)][column_of(lane)];
    if (Distribute) {
      its.mine.x = pair[0];
      its.mine.y = pair[1];
    } else {
      pair[0] = its.mine.x;
      pair[1] = its.mine.y;
    }
    its.distributed = Distribute;
  }
}

template <typename T, int Cols, int Rows>
struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "simdgroup_matrix is 8x8");
  static_assert(is_matrix_element<T>, "simdgroup_matrix needs the element type half, bfloat or float");

  simdgroup_matrix() = default;
  // A diagonal matrix.
  explicit simdgroup_matrix(T value) {
    if (!leads()) return;
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 8; ++column) elements[row][column] = row == column ? value : T(0.0f);
    }
  }

  // This lane's two elements, to read and to write.
  thread vec<T, 2>& thread_elements() {
    if (!distributed) mpsk_meet((void*)this, &share<T, true>);
    mpsk::stack_slot().passes_by = 0;
    return *(thread vec<T, 2>*)&mine;
  }

  // The rest is not Metal's.
  void gather() const {
    if (__builtin_expect(distributed, 0)) mpsk_meet((void*)this, &share<T, false>);
  }

  alignas(sizeof(T) * 8) T elements[8][8];
  vec<T, 2> mine;
  bool distributed = false;
};

typedef simdgroup_matrix<half, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8> simdgroup_bfloat8x8;
typedef simdgroup_matrix<float, 8> simdgroup_float8x8;

template <typename T, int Cols, int Rows = Cols>
inline simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Cols, Rows> result;
  if (leads()) {
    for (int i = 0; i < 8; ++i) write_row(result.elements[i], float8(float(value)));
  }
  return result;
}

// What the first lane does is out of line: kernels have many operations, and would be slow to compile.
template <typename T>
__attribute__((noinline)) void load(const simdgroup_matrix<T, 8>& d, const T* source, ulong elements_per_row,
                                    ulong2 origin, bool transpose) {
  simdgroup_matrix<T, 8>& whole = (simdgroup_matrix<T, 8>&)d;
  whole.distributed = false;
  if (!leads()) return;
  source += origin.y * elements_per_row + origin.x;
  for (int row = 0; row < 8; ++row) {
    if (!transpose) {
      __builtin_memcpy(whole.elements[row], source + row * elements_per_row, sizeof whole.elements[row]);
    } else {
      for (int column = 0; column < 8; ++column) whole.elements[row][column] = source[column * elements_per_row + row];
    }
  }
}

template <typename T>
__attribute__((noinline)) void store(const simdgroup_matrix<T, 8>& a, T* destination, ulong elements_per_row,
                                     ulong2 origin, bool transpose) {
  a.gather();
  if (!leads()) return;
  destination += origin.y * elements_per_row + origin.x;
  for (int row = 0; row < 8; ++row) {
    for (int column = 0; column < 8; ++column) {
      destination[transpose ? column * elements_per_row + row : row * elements_per_row + column] =
          a.elements[row][column];
    }
  }
}

template <typename D, typename A, typename B, typename C>
__attribute__((noinline)) void multiply_accumulate(const simdgroup_matrix<D, 8>& d, const simdgroup_matrix<A, 8>& a,
                                                   const simdgroup_matrix<B, 8>& b, const simdgroup_matrix<C, 8>& c) {
  a.gather();
  b.gather();
  c.gather();
  simdgroup_matrix<D, 8>& whole = (simdgroup_matrix<D, 8>&)d;
  whole.distributed = false;
  if (!leads()) return;
  float8 sum[8];
  for (int row = 0; row < 8; ++row) sum[row] = read_row(c.elements[row]);
  for (int k = 0; k < 8; ++k) {
    const float8 right = read_row(b.elements[k]);
    for (int row = 0; row < 8; ++row) sum[row] += float8(float(a.elements[row][k])) * right;
  }
  for (int row = 0; row < 8; ++row) write_row(whole.elements[row], sum[row]);
}

#define MPSK_SIMDGROUP_MEMORY(SPACE)                                                       \
  template <typename T>                                                                    \
  __attribute__((always_inline)) inline void simdgroup_load(                               \
      thread simdgroup_matrix<T, 8>& d, const SPACE T* source, ulong elements_per_row = 8, \
      ulong2 matrix_origin = ulong2(0), bool transpose_matrix = false) {                   \
    MPSK_MARK_MATRIX(0);                                                                   \
    if (passes_by()) return;                                                               \
    const T* memory = MPSK_MATRIX_MEMORY(const T, source, false);                          \
    load<T>(d, memory, elements_per_row, matrix_origin, transpose_matrix);                 \
  }                                                                                        \
  template <typename T>                                                                    \
  __attribute__((always_inline)) inline void simdgroup_store(                              \
      const simdgroup_matrix<T, 8>& a, SPACE T* destination, ulong elements_per_row = 8,   \
      ulong2 matrix_origin = ulong2(0), bool transpose_matrix = false) {                   \
    MPSK_MARK_MATRIX(0);                                                                   \
    if (passes_by()) return;                                                               \
    T* memory = MPSK_MATRIX_MEMORY(T, destination, true);                                  \
    store<T>(a, memory, elements_per_row, matrix_origin, transpose_matrix);                \
  }
MPSK_SIMDGROUP_MEMORY(device)
MPSK_SIMDGROUP_MEMORY(threadgroup)
#undef MPSK_SIMDGROUP_MEMORY
#undef MPSK_MATRIX_MEMORY

// d = a * b + c, in fp32, rounded once to d's type. d may be any of the operands.
template <typename D, typename A, typename B, typename C>
__attribute__((always_inline)) inline void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8>& d,
                                                                         const simdgroup_matrix<A, 8>& a,
                                                                         const simdgroup_matrix<B, 8>& b,
                                                                         const simdgroup_matrix<C, 8>& c) {
  MPSK_MARK_MATRIX(1);
  if (!passes_by()) multiply_accumulate(d, a, b, c);
}

template <typename D, typename A, typename B>
inline void simdgroup_multiply(thread simdgroup_matrix<D, 8>& d, const simdgroup_matrix<A, 8>& a,
                               const simdgroup_matrix<B, 8>& b) {
  const simdgroup_matrix<D, 8> zero = make_filled_simdgroup_matrix<D, 8, 8>(D(0.0f));
  simdgroup_multiply_accumulate(d, a, b, zero);
}

template <typename T>
inline simdgroup_matrix<T, 8> operator*(const simdgroup_matrix<T, 8>& a, const simdgroup_matrix<T, 8>& b) {
  simdgroup_matrix<T, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}

}  // namespace __simdgroup_matrix
}  // namespace metal
