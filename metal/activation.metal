// Gated linear units: out = activation(gate) * up, elementwise, in fp32, rounded once; and their gradients.
// Language modeling with gated convolutional networks: Dauphin et al., 2017; GLU variants: Shazeer, 2020.

#include <metal_stdlib>

#include "activation_params.h"
#include "activation_variants.h"
#include "common/activations.h"
#include "common/pack.h"

using namespace metal;
using namespace mpsk;

constant bool relu [[function_constant(activation_constant_relu)]];
constant bool silu [[function_constant(activation_constant_silu)]];
constant bool gelu [[function_constant(activation_constant_gelu)]];
constant bool gelu_tanh [[function_constant(activation_constant_gelu_tanh)]];
constant bool packs [[function_constant(activation_constant_packs)]];

// Known before the kernel runs, as its constants are.
static uint kind() {
  return relu        ? activation_relu
         : silu      ? activation_silu
         : gelu      ? activation_gelu
         : gelu_tanh ? activation_gelu_tanh
                     : activation_none;
}

// Where an element of out lies in the first `operands` operands.
template <uint operands>
struct gated_place {
  long at[operands];
};

template <uint operands, typename Index>
inline gated_place<operands> locate(Index index, constant gated_params& p) {
  gated_place<operands> place;
  for (uint o = 0; o < operands; ++o) {
    place.at[o] = p.offsets[o];
  }
  for (uint d = 0; d + 1 < p.dims; ++d) {
    const Index size = d == 0 ? Index(p.columns) : Index(p.sizes[d]);
    const Index i = index % size;
    for (uint o = 0; o < operands; ++o) {
      place.at[o] += long(i) * p.strides[o][d];
    }
    index /= size;
  }
  for (uint o = 0; o < operands; ++o) {
    place.at[o] += long(index) * p.strides[o][p.dims - 1];
  }
  return place;
}

// Divides in 32 bits where they hold every index.
template <uint operands>
inline gated_place<operands> locate(ulong index, constant gated_params& p) {
  return p.count >> 32 == 0 ? locate<operands, uint>(uint(index), p) : locate<operands, ulong>(index, p);
}

// The first element of a threadgroup, each of whose threads takes 16 bytes of elements: with `packs` adjacent ones,
// without so that neighbouring threads take neighbouring elements.
template <typename T>
inline ulong first_element(uint2 group) {
  return (ulong(group.y) * activation_grid_width + group.x) * (activation_threads * pack_size<T>());
}

// gated_forward: out = activation(gate) * up.
//
// Grid: x and y together number the threadgroups, of activation_threads threads, 16 bytes of out each.
// Threadgroup bytes: 0.
// Necessary: gate and up read once, out written once. The kernel adds none.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(activation_threads)]] void gated_forward(
    const device T* gate [[buffer(activation_buffer_gate)]], const device T* up [[buffer(activation_buffer_up)]],
    device T* out [[buffer(activation_buffer_out)]], constant gated_params& p [[buffer(activation_buffer_params)]],
    uint2 group [[threadgroup_position_in_grid]], uint thread_index [[thread_index_in_threadgroup]]) {
  constexpr uint size = pack_size<T>();
  const ulong first = first_element<T>(group);
  const ulong start = packs ? first + thread_index * size : first + thread_index;
  if (packs && start + size <= p.count) {
    const gated_place<3> place = locate<3>(start, p);
    const pack<T> g = load_pack(gate + place.at[activation_buffer_gate]);
    const pack<T> u = load_pack(up + place.at[activation_buffer_up]);
    pack<T> result;
#pragma clang loop unroll(full)
    for (uint i = 0; i < size; ++i) {
      result.values[i] = activate(kind(), g.values[i]) * u.values[i];
    }
    store_pack(out + place.at[activation_buffer_out], result);
    return;
  }
  const uint step = packs ? 1 : activation_threads;
  for (uint i = 0; i < size && start + i * step < p.count; ++i) {
    const gated_place<3> place = locate<3>(start + i * step, p);
    const float value = activate(kind(), float(gate[place.at[activation_buffer_gate]]));
    out[place.at[activation_buffer_out]] = T(value * float(up[place.at[activation_buffer_up]]));
  }
}

// gated_backward: gate_gradient = gradient * up * activation'(gate), up_gradient = gradient * activation(gate).
//
// Grid and threadgroup: as above. Chosen for: the backward pass.
// Necessary: gate, up and the gradient of out read once, both gradients written once. The kernel adds none: the
// activation is computed again, not stored.
template <typename T>
[[kernel, max_total_threads_per_threadgroup(activation_threads)]] void gated_backward(
    const device T* gate [[buffer(activation_buffer_gate)]], const device T* up [[buffer(activation_buffer_up)]],
    const device T* gradient [[buffer(activation_buffer_out)]],
    device T* gate_gradient [[buffer(activation_buffer_gate_gradient)]],
    device T* up_gradient [[buffer(activation_buffer_up_gradient)]],
    constant gated_params& p [[buffer(activation_buffer_params)]], uint2 group [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]]) {
  constexpr uint size = pack_size<T>();
  const ulong first = first_element<T>(group);
  const ulong start = packs ? first + thread_index * size : first + thread_index;
  if (packs && start + size <= p.count) {
    const gated_place<gated_operands> place = locate<gated_operands>(start, p);
    const pack<T> g = load_pack(gate + place.at[activation_buffer_gate]);
    const pack<T> u = load_pack(up + place.at[activation_buffer_up]);
    const pack<T> d = load_pack(gradient + place.at[activation_buffer_out]);
    pack<T> of_gate, of_up;
#pragma clang loop unroll(full)
    for (uint i = 0; i < size; ++i) {
      const curve c = curve_at(kind(), g.values[i]);
      of_gate.values[i] = descend(kind(), c, d.values[i] * u.values[i]);
      of_up.values[i] = d.values[i] * c.value;
    }
    store_pack(gate_gradient + place.at[activation_buffer_gate_gradient], of_gate);
    store_pack(up_gradient + place.at[activation_buffer_up_gradient], of_up);
    return;
  }
  const uint step = packs ? 1 : activation_threads;
  for (uint i = 0; i < size && start + i * step < p.count; ++i) {
    const gated_place<gated_operands> place = locate<gated_operands>(start + i * step, p);
    const curve c = curve_at(kind(), float(gate[place.at[activation_buffer_gate]]));
    const float d = float(gradient[place.at[activation_buffer_out]]);
    const float u = float(up[place.at[activation_buffer_up]]);
    gate_gradient[place.at[activation_buffer_gate_gradient]] = T(descend(kind(), c, d * u));
    up_gradient[place.at[activation_buffer_up_gradient]] = T(d * c.value);
  }
}

#define INSTANTIATE_FORWARD(dtype, T)                        \
  template [[host_name("gated_forward_" #dtype)]] [[kernel]] \
  decltype(gated_forward<T>) gated_forward<T>;
GATED_FORWARD_VARIANTS(INSTANTIATE_FORWARD)

#define INSTANTIATE_BACKWARD(dtype, T)                        \
  template [[host_name("gated_backward_" #dtype)]] [[kernel]] \
  decltype(gated_backward<T>) gated_backward<T>;
GATED_BACKWARD_VARIANTS(INSTANTIATE_BACKWARD)
