// Tensors in memory and cooperative ones (MSL 4, 2.20 and 7). Visible after <metal_tensor>.
//
// A tensor is a pointer, extents and strides; extent 0 moves the fastest, so a matrix has the extents (columns, rows).
// There are inline ones only, made in the kernel: a tensor_handle would be an MTLTensor, which the framework lacks.
#pragma once

#include "array.h"
#include "runtime.h"

namespace metal {
namespace __tensor {

constexpr size_t dynamic_extent = ~size_t(0);

struct tensor_inline {};
struct tensor_handle {};
struct tensor_offset {};

// Who performs an operation together: so many simdgroups of the threadgroup, which must be all that it has.
template <int N>
struct execution_simdgroups {
  static constexpr int simdgroups = N;
};
using execution_simdgroup = execution_simdgroups<1>;

template <typename Index, size_t... E>
struct extents {
  using index_type = Index;
  static constexpr size_t rank() { return sizeof...(E); }
  static constexpr size_t rank_dynamic() { return ((E == dynamic_extent) + ... + 0); }
  static constexpr size_t static_extent(size_t i) {
    const size_t all[] = {E..., 0};
    return all[i];
  }

  constexpr extents() : values{Index(E)...} {}
  // The dynamic extents alone, or all.
  template <typename... I, enable_if_t<sizeof...(I) != 0 && (__is_convertible(I, Index) && ...), int> = 0>
  constexpr extents(I... given) : values{Index(E)...} {
    static_assert(sizeof...(I) == rank() || sizeof...(I) == rank_dynamic(),
                  "extents take a value for each dynamic extent, or for each extent");
    const Index all[] = {Index(given)...};
    for (size_t i = 0, next = 0; i < rank(); ++i) {
      if (sizeof...(I) == rank()) {
        values[i] = all[i];
      } else if (static_extent(i) == dynamic_extent) {
        values[i] = all[next++];
      }
    }
  }
  constexpr Index extent(size_t i) const { return values[i]; }

  Index values[sizeof...(E) ? sizeof...(E) : 1];
};

template <typename Index, size_t Rank, size_t... E>
struct repeat_dynamic : repeat_dynamic<Index, Rank - 1, E..., dynamic_extent> {};
template <typename Index, size_t... E>
struct repeat_dynamic<Index, 0, E...> {
  using type = extents<Index, E...>;
};
template <typename Index, size_t Rank>
using dextents = typename repeat_dynamic<Index, Rank>::type;

template <typename Element, typename Extents, typename Descriptor = tensor_inline, typename... Tags>
struct tensor {
  static_assert(is_same_v<Descriptor, tensor_inline>, "the simulator has tensors of the kind tensor_inline only");
  using element_type = Element;
  using value_type = remove_addrspace_t<remove_const_t<Element>>;
  using extents_type = Extents;
  using index_type = typename Extents::index_type;
  using pointer = Element*;
  static constexpr size_t rank() { return Extents::rank(); }

  // Packed.
  constexpr tensor(pointer data, Extents sizes) : data(data), sizes(sizes) {
    long stride = 1;
    for (size_t i = 0; i < rank(); ++i) {
      strides[i] = stride;
      stride *= long(sizes.extent(i));
    }
  }
  template <typename I>
  constexpr tensor(pointer data, Extents sizes, array<I, Extents::rank()> steps) : data(data), sizes(sizes) {
    for (size_t i = 0; i < rank(); ++i) strides[i] = long(steps[i]);
  }

  constexpr index_type get_extent(size_t i) const { return sizes.extent(i); }
  constexpr index_type get_stride(size_t i) const { return index_type(strides[i]); }

  template <typename I>
  Element& operator[](array<I, Extents::rank()> index) const {
    long sum = 0;
    for (size_t i = 0; i < rank(); ++i) sum += long(index[i]) * strides[i];
    return data[sum];
  }

  // The part that begins at `origin`: to the end of each extent, or of the extents E.
  template <typename... I>
  tensor<Element, dextents<index_type, sizeof...(I)>, tensor_inline> slice(I... origin) const {
    const index_type at[] = {index_type(origin)...};
    array<long, sizeof...(I)> steps;
    dextents<index_type, sizeof...(I)> rest;
    for (size_t i = 0; i < sizeof...(I); ++i) {
      steps[i] = strides[i];
      rest.values[i] = sizes.extent(i) - at[i];
    }
    return {data + offset(origin...), rest, steps};
  }
  template <size_t... E, typename... I, enable_if_t<sizeof...(E) != 0 && sizeof...(E) == sizeof...(I), int> = 0>
  tensor<Element, extents<index_type, E...>, tensor_inline> slice(I... origin) const {
    const index_type at[] = {index_type(origin)...};
    array<long, sizeof...(I)> steps;
    extents<index_type, E...> part;
    for (size_t i = 0; i < sizeof...(I); ++i) {
      steps[i] = strides[i];
      if (part.static_extent(i) == dynamic_extent) part.values[i] = sizes.extent(i) - at[i];
    }
    return {data + offset(origin...), part, steps};
  }

  // The rest is not Metal's.
  template <typename... I>
  constexpr long offset(I... indices) const {
    const long at[] = {long(indices)...};
    long sum = 0;
    for (size_t i = 0; i < rank(); ++i) sum += at[i] * strides[i];
    return sum;
  }

  pointer data;
  Extents sizes;
  long strides[rank() ? rank() : 1];
};
template <typename Element, typename Extents>
tensor(Element*, Extents) -> tensor<Element, Extents, tensor_inline>;
template <typename Element, typename Extents, typename I, size_t N>
tensor(Element*, Extents, array<I, N>) -> tensor<Element, Extents, tensor_inline>;

// --- Cooperative tensors ---

// How the elements of a `columns` x `rows` matrix are dealt out to `simdgroups` simdgroups. Metal leaves it open and
// its chips differ, so here it is none that a chip has, though as near together: 8 rows of 16 columns at a time, the
// last ones first, of which a lane has 4 neighbours, the last one first. Each simdgroup owns a part of the rows.
template <int columns, int rows, int simdgroups>
struct cooperative_layout {
  static constexpr int part = columns * rows / simdgroups;  // of a simdgroup
  static constexpr int capacity = (part + int(MPSK_SIMD_WIDTH) - 1) / int(MPSK_SIMD_WIDTH);
  static constexpr bool in_blocks = columns % 16 == 0 && rows % (8 * simdgroups) == 0;
  // The element that lies at place i of a lane, by rows; negative where there is none.
  static constexpr int element(int simdgroup, int lane, int i) {
    if (!in_blocks) {
      const int number = i * int(MPSK_SIMD_WIDTH) + (lane * 5 + 3) % int(MPSK_SIMD_WIDTH);
      return number < part ? simdgroup * part + number : -1;
    }
    const int block = part / 128 - 1 - i / 4;
    const int row = block / (columns / 16) * 8 + lane % 8;
    const int column = block % (columns / 16) * 16 + lane / 8 * 4 + 3 - i % 4;
    return simdgroup * part + row * columns + column;
  }
};

template <typename Element, int columns, int rows, int simdgroups>
struct cooperative_tensor {
  using element_type = Element;
  using value_type = Element;
  using layout = cooperative_layout<columns, rows, simdgroups>;
  static constexpr int columns_ = columns, rows_ = rows;
  static constexpr size_t rank() { return 2; }
  static constexpr uint16_t get_capacity() { return uint16_t(layout::capacity); }

  thread Element& operator[](uint16_t i) thread { return *(thread Element*)&values[i]; }
  Element get(uint16_t i) const { return values[i]; }
  void set(uint16_t i, Element value) { values[i] = value; }
  bool is_valid_element(uint16_t i) const { return element(i) >= 0; }
  bool get_mask(uint16_t i) const { return is_valid_element(i); }
  // (column, row)
  array<int, 2> get_multidimensional_index(uint16_t i) const {
    const int at = element(i);
    array<int, 2> index;
    index[0] = at % columns;
    index[1] = at / columns;
    return index;
  }

  struct iterator {
    thread cooperative_tensor* owner;
    uint16_t i;
    thread Element& operator*() const { return (*owner)[i]; }
    iterator& operator++() {
      ++i;
      return *this;
    }
    bool operator==(iterator other) const { return i == other.i; }
    bool operator!=(iterator other) const { return i != other.i; }
    array<int, 2> get_multidimensional_index() const { return owner->get_multidimensional_index(i); }
  };
  iterator begin() thread { return {this, 0}; }
  iterator end() thread { return {this, get_capacity()}; }

  // What lies outside of the tensor is zero, and is not stored.
  template <typename Tensor>
  void load(const Tensor& from) {
    for (uint16_t i = 0; i < get_capacity(); ++i) {
      if (!is_valid_element(i)) continue;
      const array<int, 2> at = get_multidimensional_index(i);
      values[i] = has(from, at) ? Element(from[at]) : Element(0.0f);
    }
  }
  template <typename Tensor>
  void store(const Tensor& to) const {
    for (uint16_t i = 0; i < get_capacity(); ++i) {
      if (!is_valid_element(i)) continue;
      const array<int, 2> at = get_multidimensional_index(i);
      if (has(to, at)) to[at] = values[i];
    }
  }

  // The rest is not Metal's.
  int element(uint16_t i) const {
    const mpsk_thread& self = mpsk::self();
    return layout::element(int(self.simdgroup) % simdgroups, int(self.lane), i);
  }
  template <typename Tensor>
  static bool has(const Tensor& t, array<int, 2> at) {
    return at[0] < int(t.get_extent(0)) && at[1] < int(t.get_extent(1));
  }

  Element values[layout::capacity];
};

}  // namespace __tensor
}  // namespace metal
