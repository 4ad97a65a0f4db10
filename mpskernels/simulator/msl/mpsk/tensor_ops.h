// matmul2d of <MetalPerformancePrimitives/MetalPerformancePrimitives.h>, visible after it.
//
// As with simdgroup_matrix one lane works for its simdgroup, here on the elements that all lanes hold. Simdgroups that
// share an operation make the rows that are theirs and need not meet.
#pragma once

#include "tensor.h"

namespace metal {
namespace __tensor_ops {

using namespace __tensor;
using namespace __simdgroup_matrix;

#ifdef MPSK_INSTRUMENTED
// The memory that the simdgroup goes through: `rows` times `row_bytes`. Gives an address to use.
extern "C" void* mpsk_tensor_memory(const void* memory, ulong rows, ulong row_bytes, long pitch_bytes,
                                    unsigned element_size, const mpsk_site* site);
extern "C" void mpsk_tensor_flops(ulong flops);
#define MPSK_TENSOR_MEMORY(...) mpsk_tensor_memory(__VA_ARGS__, 0)
#define MPSK_TENSOR_FLOPS(flops) mpsk_tensor_flops(flops)
#else
#define MPSK_TENSOR_MEMORY(memory, ...) memory
#define MPSK_TENSOR_FLOPS(flops)
#endif

// A class, but a template takes the number that it becomes: that needs no C++20.
struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };

  constexpr matmul2d_descriptor(int m, int n, int k = static_cast<int>(dynamic_extent), bool transpose_left = false,
                                bool transpose_right = false, bool relaxed_precision = false,
                                mode matmul_mode = mode::multiply)
      : number(ulong(m) | ulong(n) << 16 | ulong(k + 1) << 32 | ulong(transpose_left) << 56 |
               ulong(transpose_right) << 57 | ulong(relaxed_precision) << 58 |
               ulong(matmul_mode == mode::multiply_accumulate) << 59) {}
  constexpr operator ulong() const { return number; }
  ulong number;
};

// A matrix of up to 2^31 rows, as one lane sees it for all.
template <typename T>
struct matrix_view {
  const T* data;
  long row_stride, column_stride;
  int rows, columns;  // what lies beyond is zero
};

template <bool rounds, typename T>
inline float operand(T value) {
  float wide = float(value);
  if constexpr (rounds && is_same_v<T, float>) {
    // As the matrix units take it: 11 bits of significand.
    const uint bits = __builtin_bit_cast(uint, wide);
    if ((bits & 0x7f800000u) != 0x7f800000u) wide = __builtin_bit_cast(float, (bits + 0x1000u) & ~0x1fffu);
  }
  return wide;
}

// sums[m][n] += left * right over k. The sums are those of one simdgroup's rows.
template <int m, int n, bool rounds, typename A, typename B>
__attribute__((noinline)) void multiply_add(float (*sums)[n], matrix_view<A> left, matrix_view<B> right) {
  constexpr int step = 32;
  float a[m][step];
  float b[step][n];
  const int k = left.columns;
  for (int begin = 0; begin < k; begin += step) {
    const int count = k - begin < step ? k - begin : step;
    for (int i = 0; i < m; ++i) {
      for (int s = 0; s < count; ++s) {
        const long at = i * left.row_stride + (begin + s) * left.column_stride;
        a[i][s] = i < left.rows ? operand<rounds>(left.data[at]) : 0.0f;
      }
    }
    for (int s = 0; s < count; ++s) {
      for (int j = 0; j < n; ++j) {
        const long at = (begin + s) * right.row_stride + j * right.column_stride;
        b[s][j] = j < right.columns && begin + s < right.rows ? operand<rounds>(right.data[at]) : 0.0f;
      }
    }
    for (int i = 0; i < m; ++i) {
      for (int s = 0; s < count; ++s) {
        for (int j = 0; j < n; ++j) sums[i][j] += a[i][s] * b[s][j];
      }
    }
  }
}

template <typename T>
struct tensor_traits {
  static constexpr bool is_cooperative = false;
};
template <typename Element, int columns, int rows, int simdgroups>
struct tensor_traits<cooperative_tensor<Element, columns, rows, simdgroups>> {
  static constexpr bool is_cooperative = true;
};

template <typename T>
using plain = remove_const_t<remove_addrspace_t<T>>;
template <typename T>
using operand_of = plain<typename plain<T>::element_type>;

template <typename Left, typename Right, typename Destination>
struct call {
  const Left* left;
  const Right* right;
  Destination* destination;
  int first;  // row of this simdgroup
  const void* left_memory;
  const void* right_memory;
};

// The matrix that an operand is, as memory: of a cooperative one, that all lanes have written to `gathered`.
template <bool transposed, typename T, typename Tensor, typename Call>
inline matrix_view<T> view(void* const* lanes, const Tensor* Call::* which, const void* memory, T* gathered) {
  const Tensor& t = *(((const Call*)lanes[0])->*which);
  if constexpr (tensor_traits<Tensor>::is_cooperative) {
    using layout = typename Tensor::layout;
    for (int lane = 0; lane < int(MPSK_SIMD_WIDTH); ++lane) {
      const Tensor& its = *(((const Call*)lanes[lane])->*which);
      for (int i = 0; i < layout::capacity; ++i) {
        const int element = layout::element(0, lane, i);
        if (element >= 0) gathered[element] = its.values[i];
      }
    }
    constexpr int pitch = Tensor::columns_, height = Tensor::rows_;
    return transposed ? matrix_view<T>{gathered, 1, pitch, pitch, height}
                      : matrix_view<T>{gathered, pitch, 1, height, pitch};
  } else {
    const int columns = int(t.get_extent(0)), height = int(t.get_extent(1));
    return transposed ? matrix_view<T>{(const T*)memory, 1, t.strides[1], columns, height}
                      : matrix_view<T>{(const T*)memory, t.strides[1], 1, height, columns};
  }
}

template <typename Op, typename Left, typename Right, typename Destination>
inline void multiply(void* const* lanes, unsigned active) {
  constexpr int m = Op::m, n = Op::n, k = Op::k, rows = Op::rows;
  if (active != 0xffffffffu) mpsk_fault("matmul2d needs all 32 lanes of the simdgroup");
  using Call = call<Left, Right, Destination>;
  using A = operand_of<Left>;
  using B = operand_of<Right>;
  using layout = typename Destination::layout;
  const Call& its = *(const Call*)lanes[0];
  A left_elements[tensor_traits<Left>::is_cooperative ? m * k : 1];
  B right_elements[tensor_traits<Right>::is_cooperative ? k * n : 1];
  matrix_view<A> left = view<Op::transpose_left, A, Left, Call>(lanes, &Call::left, its.left_memory, left_elements);
  matrix_view<B> right =
      view<Op::transpose_right, B, Right, Call>(lanes, &Call::right, its.right_memory, right_elements);
  left.data += its.first * left.row_stride;
  left.rows -= its.first;
  if (k >= 0) {
    if (left.columns < k || right.rows < k) {
      mpsk_fault("matmul2d reads beyond an operand: its k is less than the descriptor's");
    }
    left.columns = k;
  }

  float sums[rows][n];
  for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    const Destination& part = *((const Call*)lanes[lane])->destination;
    for (int i = 0; i < layout::capacity; ++i) {
      const int element = layout::element(its.first / rows, int(lane), i);
      if (element >= 0) (&sums[0][0])[element - its.first * n] = Op::accumulates ? float(part.values[i]) : 0.0f;
    }
  }
  multiply_add<rows, n, Op::relaxed_precision>(sums, left, right);
  for (unsigned lane = 0; lane < MPSK_SIMD_WIDTH; ++lane) {
    Destination& part = *((const Call*)lanes[lane])->destination;
    for (int i = 0; i < layout::capacity; ++i) {
      const int element = layout::element(its.first / rows, int(lane), i);
      if (element < 0) continue;
      const int row = element / n, column = element % n;
      const bool exists = row - its.first < left.rows && column < right.columns;
      // Of rows and columns that no operand has, Metal says nothing.
      part.values[i] = operand_of<Destination>(exists ? (&sums[0][0])[element - its.first * n] : __builtin_nanf(""));
    }
  }
}

template <ulong D, typename Scope, typename... Arguments>
struct matmul2d {
  static constexpr int m = D & 0xffff, n = D >> 16 & 0xffff, k = int(D >> 32 & 0xffffff) - 1;
  static constexpr bool transpose_left = D >> 56 & 1, transpose_right = D >> 57 & 1;
  static constexpr bool relaxed_precision = D >> 58 & 1, accumulates = D >> 59 & 1;
  static constexpr int simdgroups = Scope::simdgroups;
  static constexpr int rows = m / simdgroups;  // of a simdgroup
  static_assert(m > 0 && n > 0 && m % 8 == 0 && n % 8 == 0 && (m % 16 == 0 || n % 16 == 0),
                "matmul2d needs an m and n that are multiples of 8, and one of 16");
  static_assert(m % simdgroups == 0, "the simulator needs rows that the simdgroups can share evenly");
  static_assert(k < 0 || k % 16 == 0, "matmul2d needs a k that is a multiple of 16, or dynamic_extent");

  template <typename A, typename B, typename C, typename Coordinate = int>
  using cooperative_tensor_left_input_t =
      cooperative_tensor<A, transpose_left ? m : k, transpose_left ? k : m, simdgroups>;
  template <typename A, typename B, typename C, typename Coordinate = int>
  using cooperative_tensor_right_input_t =
      cooperative_tensor<B, transpose_right ? k : n, transpose_right ? n : k, simdgroups>;
  template <typename Left, typename Right, typename C, typename Coordinate = int>
  using cooperative_tensor_destination_t = cooperative_tensor<C, n, m, simdgroups>;

  template <typename A, typename B, typename C, typename Coordinate = int>
  cooperative_tensor_left_input_t<A, B, C> get_left_input_cooperative_tensor() const {
    static_assert(simdgroups == 1 && k > 0, "cooperative inputs need one simdgroup and a k that is not dynamic");
    return {};
  }
  template <typename A, typename B, typename C, typename Coordinate = int>
  cooperative_tensor_right_input_t<A, B, C> get_right_input_cooperative_tensor() const {
    static_assert(simdgroups == 1 && k > 0, "cooperative inputs need one simdgroup and a k that is not dynamic");
    return {};
  }
  // Its elements have no value yet.
  template <typename Left, typename Right, typename C, typename Coordinate = int>
  cooperative_tensor_destination_t<Left, Right, C> get_destination_cooperative_tensor() const {
    cooperative_tensor_destination_t<Left, Right, C> fresh;
    for (int i = 0; i < fresh.get_capacity(); ++i) fresh.values[i] = C(__builtin_nanf(""));
    return fresh;
  }

  template <typename L, typename R, typename C>
  __attribute__((always_inline)) void run(const L& left, const R& right, C& destination) const {
    using Left = plain<L>;
    using Right = plain<R>;
    using Destination = plain<C>;
    static_assert(tensor_traits<Destination>::is_cooperative,
                  "the simulator's matmul2d has cooperative destinations only");
    static_assert(is_matrix_element<operand_of<Left>> && is_matrix_element<operand_of<Right>>,
                  "matmul2d needs operands of half, bfloat or float");
    MPSK_MARK_MATRIX(0);
    if (simdgroups > 1 && mpsk::self().group->simdgroups != simdgroups) {
      mpsk_fault("matmul2d runs on another number of simdgroups than the threadgroup has");
    }
    const int first = int(mpsk::self().simdgroup) % simdgroups * rows;
    call<Left, Right, Destination> its{&left, &right, &destination, first, nullptr, nullptr};
    int depth = k;
    if constexpr (!tensor_traits<Left>::is_cooperative) {
      if (k < 0) depth = int(left.get_extent(transpose_left ? 1 : 0));
      its.left_memory = memory(left, transpose_left, first, rows, depth);
    }
    if constexpr (!tensor_traits<Right>::is_cooperative) {
      its.right_memory = memory(right, !transpose_right, 0, n, depth);
    }
    MPSK_TENSOR_FLOPS(2ul * rows * n * ulong((depth + 15) / 16 * 16));
    mpsk_meet(&its, &multiply<matmul2d, Left, Right, Destination>);
  }

 private:
  // Where the data of an operand begins, of which `count` of the rows from `first` on are read, or, `across`, of the
  // columns; along the other extent `depth`.
  template <typename Tensor>
  __attribute__((always_inline)) static const void* memory(const Tensor& t, bool across, int first, int count,
                                                           int depth) {
    if (t.strides[0] != 1) mpsk_fault("matmul2d needs tensors whose first stride is 1");
    constexpr unsigned size = sizeof(operand_of<Tensor>);
    const long there = long(t.get_extent(across ? 0 : 1)) - first;
    const long wanted = there < count ? there : count;
    if (wanted <= 0 || depth <= 0) return nullptr;
    const long skipped = first * (across ? 1 : t.strides[1]);
    [[maybe_unused]] const ulong read_rows = ulong(across ? depth : wanted);
    [[maybe_unused]] const ulong row_bytes = ulong(across ? wanted : depth) * size;
    const void* const address =
        MPSK_TENSOR_MEMORY((const void*)(t.data + skipped), read_rows, row_bytes, t.strides[1] * long(size), size);
    return (const operand_of<Tensor>*)address - skipped;
  }
};

#undef MPSK_TENSOR_MEMORY
#undef MPSK_TENSOR_FLOPS

}  // namespace __tensor_ops
}  // namespace metal
