"""Tensors of Metal 4 and matmul2d: what they compute, what they refuse, and what check and profile see of them."""

import pytest
import torch

from mpskernels import simulator
from mpskernels.simulator.compiler import CompileError

HEAD = """
#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;
"""
# c = a b, by steps of 48 along k, or whole; the operands are not padded.
PRODUCT = """
template <typename T, int bm, int bn, bool ta, bool tb, int simdgroups>
kernel void product(const device T* a, const device T* b, device float* c, constant int& m, constant int& n,
                    constant int& k, constant int& step) {
  using operand = tensor<device T, dextents<int, 2>, tensor_inline>;
  constexpr auto descriptor = matmul2d_descriptor(bm, bn, static_cast<int>(dynamic_extent), ta, tb, false,
                                                  matmul2d_descriptor::mode::multiply_accumulate);
  matmul2d<descriptor, execution_simdgroups<simdgroups>> op;
  auto sums = op.template get_destination_cooperative_tensor<operand, operand, float>();
  for (ushort i = 0; i < sums.get_capacity(); ++i) sums[i] = 0.0f;
  for (int s = 0; s < k; s += step) {
    const int depth = min(step, k - s);
    operand left((device T*)a + (ta ? s * m : s), ta ? dextents<int, 2>(m, depth) : dextents<int, 2>(depth, m),
                 array<int, 2>{1, ta ? m : k});
    operand right((device T*)b + (tb ? s : s * n), tb ? dextents<int, 2>(depth, n) : dextents<int, 2>(n, depth),
                  array<int, 2>{1, tb ? k : n});
    op.run(left, right, sums);
  }
  for (ushort i = 0; i < sums.get_capacity(); ++i) {
    const auto at = sums.get_multidimensional_index(i);
    if (sums.is_valid_element(i) && at[1] < m && at[0] < n) c[at[1] * n + at[0]] = sums[i];
  }
}
"""
TYPES = {"half": torch.float16, "bfloat": torch.bfloat16, "float": torch.float32}


def compiled(body):
    return simulator.compile_shader(HEAD + body)


def product(dtype, m, n, k, transposed=(False, False), tile=(32, 32), simdgroups=1, step=48):
    """The product and its definition in float64."""
    name = next(name for name, known in TYPES.items() if known == dtype)
    ta, tb = (str(t).lower() for t in transposed)
    arguments = f"product<{name}, {tile[0]}, {tile[1]}, {ta}, {tb}, {simdgroups}>"
    library = compiled(f'{PRODUCT}template [[host_name("p")]] kernel decltype({arguments}) {arguments};')
    generator = torch.Generator().manual_seed(0)
    a = torch.randn((k, m) if transposed[0] else (m, k), generator=generator).to(dtype)
    b = torch.randn((n, k) if transposed[1] else (k, n), generator=generator).to(dtype)
    c = torch.empty(m, n, device="mps")
    threads = 32 * simdgroups
    casts = dict.fromkeys(range(3, 7), "int32")
    library.p(a.to("mps"), b.to("mps"), c, m, n, k, step, threads=threads, group_size=threads, arg_casts=casts)
    left, right = a.double(), b.double()
    return c.cpu().double(), (left.t() if transposed[0] else left) @ (right.t() if transposed[1] else right)


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_matmul2d_multiplies_in_every_layout(dtype, transposed):
    with simulator.check():
        found, expected = product(dtype, 32, 32, 64, transposed)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        found, expected = product(dtype, 17, 29, 101, transposed)  # what lies beyond the extents is not read
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("tile", "simdgroups"), [((16, 32), 1), ((64, 32), 2), ((64, 64), 4), ((8, 48), 1)], ids=str)
def test_simdgroups_share_a_product(tile, simdgroups):
    found, expected = product(torch.float16, *tile, 40, tile=tile, simdgroups=simdgroups)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_float_operands_are_rounded_only_where_precision_is_relaxed():
    source = """
    template <bool relaxed>
    kernel void k(device float* x, device float* out) {
      using operand = tensor<device float, dextents<int, 2>, tensor_inline>;
      constexpr auto descriptor = matmul2d_descriptor(16, 16, 16, false, false, relaxed);
      matmul2d<descriptor, execution_simdgroup> op;
      operand a(x, dextents<int, 2>(16, 16)), b(x + 256, dextents<int, 2>(16, 16));
      auto c = op.template get_destination_cooperative_tensor<operand, operand, float>();
      op.run(a, b, c);
      c.store(operand(out, dextents<int, 2>(16, 16)));
    }
    template [[host_name("exact")]] kernel decltype(k<false>) k<false>;
    template [[host_name("relaxed")]] kernel decltype(k<true>) k<true>;
    """
    library = compiled(source)
    a = torch.zeros(16, 16)
    a[0, 0], a[1, 1], a[2, 2] = 1 + 2**-10, 1 + 2**-12, torch.inf
    x, out = torch.cat([a, torch.eye(16)]).to("mps"), torch.empty(16, 16, device="mps")
    library.exact(x, out, threads=32, group_size=32)
    assert out.cpu().diagonal()[:2].tolist() == [1 + 2**-10, 1 + 2**-12]
    library.relaxed(x, out, threads=32, group_size=32)
    assert out.cpu().diagonal()[:3].tolist() == [1 + 2**-10, 1.0, torch.inf]


def test_multiply_overwrites_and_multiply_accumulate_adds():
    source = """
    template <matmul2d_descriptor::mode mode>
    kernel void k(device float* x, device float* out) {
      using operand = tensor<device float, extents<int, 16, 16>, tensor_inline>;
      constexpr auto descriptor = matmul2d_descriptor(16, 16, 16, false, false, false, mode);
      matmul2d<descriptor, execution_simdgroup> op;
      operand a(x, extents<int, 16, 16>());
      auto c = op.template get_destination_cooperative_tensor<operand, operand, float>();
      for (auto it = c.begin(); it != c.end(); ++it) *it = float(it.get_multidimensional_index()[0]);
      op.run(a, a, c);
      c.store(operand(out, extents<int, 16, 16>()));
    }
    template [[host_name("overwrites")]] kernel decltype(k<matmul2d_descriptor::mode::multiply>)
        k<matmul2d_descriptor::mode::multiply>;
    template [[host_name("adds")]] kernel decltype(k<matmul2d_descriptor::mode::multiply_accumulate>)
        k<matmul2d_descriptor::mode::multiply_accumulate>;
    """
    library, x, out = compiled(source), torch.eye(16).to("mps"), torch.empty(16, 16, device="mps")
    library.overwrites(x, out, threads=32, group_size=32)
    assert torch.equal(out.cpu(), torch.eye(16))
    library.adds(x, out, threads=32, group_size=32)
    assert torch.equal(out.cpu(), torch.eye(16) + torch.arange(16.0))


def test_inputs_may_be_cooperative():
    source = """
    kernel void k(device half* x, device half* y, device float* out) {
      constexpr auto descriptor = matmul2d_descriptor(16, 32, 16, false, true, true,
                                                      matmul2d_descriptor::mode::multiply_accumulate);
      matmul2d<descriptor, execution_simdgroup> op;
      auto a = op.get_left_input_cooperative_tensor<half, half, float>();
      auto b = op.get_right_input_cooperative_tensor<half, half, float>();
      auto c = op.get_destination_cooperative_tensor<remove_addrspace_t<decltype(a)>, remove_addrspace_t<decltype(b)>,
                                                     float>();
      a.load(tensor(x, dextents<int, 2>(16, 16)));
      for (ushort i = 0; i < b.get_capacity(); ++i) {
        const auto at = b.get_multidimensional_index(i);
        b[i] = y[at[1] * 16 + at[0]];
      }
      for (ushort i = 0; i < c.get_capacity(); ++i) c[i] = 0.0f;
      op.run(a, b, c);
      c.store(tensor(out, dextents<int, 2>(32, 16)));
    }
    """
    x, y = torch.randn(16, 16).half(), torch.randn(32, 16).half()
    out = torch.empty(16, 32, device="mps")
    compiled(source).k(x.to("mps"), y.to("mps"), out, threads=32, group_size=32)
    torch.testing.assert_close(out.cpu().double(), x.double() @ y.double().t(), rtol=0, atol=1e-4)


def test_the_layout_is_no_chips():
    """A kernel that leans on M5's layout, or on that of simdgroup_matrix, computes something else here."""
    source = """
    kernel void k(device int* out, uint lane [[thread_index_in_simdgroup]]) {
      using operand = tensor<device half, dextents<int, 2>, tensor_inline>;
      constexpr auto descriptor = matmul2d_descriptor(16, 16, 16);
      matmul2d<descriptor, execution_simdgroup> op;
      auto c = op.get_destination_cooperative_tensor<operand, operand, float>();
      for (ushort i = 0; i < c.get_capacity(); ++i) {
        const auto at = c.get_multidimensional_index(i);
        out[lane * c.get_capacity() + i] = at[1] * 16 + at[0];
      }
    }
    """
    out = torch.full((256,), -1, dtype=torch.int32, device="mps")
    compiled(source).k(out, threads=32, group_size=32)
    places = out.cpu().reshape(32, 8)
    assert sorted(places.flatten().tolist()) == list(range(256))
    lane, i = torch.arange(32).unsqueeze(1), torch.arange(8)
    m5_row = ((lane >> 2) & 4 | (lane >> 1) & 3) + i // 4 * 8
    m5_column = ((lane >> 2) & 2 | lane & 1) * 4 + i % 4
    assert (places != m5_row * 16 + m5_column).float().mean() > 0.9
    assert len({tuple(row.tolist()) for row in places}) == 32


def test_slices_begin_at_their_origin():
    source = """
    kernel void k(device int* x, device int* out) {
      tensor<device int, dextents<int, 2>, tensor_inline> t(x, dextents<int, 2>(5, 4), array<int, 2>{1, 8});
      auto rest = t.slice(2, 1);
      auto part = t.slice<2, dynamic_extent>(1, 3);
      out[0] = rest.get_extent(0);
      out[1] = rest.get_extent(1);
      out[2] = rest[array<int, 2>{2, 1}];
      out[3] = part.get_extent(0);
      out[4] = part.get_extent(1);
      out[5] = part[array<int, 2>{0, 0}];
      out[6] = part.get_stride(1);
    }
    """
    out = torch.zeros(7, dtype=torch.int32, device="mps")
    compiled(source).k(torch.arange(32, dtype=torch.int32).to("mps"), out, threads=1)
    assert out.tolist() == [3, 3, 2 * 8 + 4, 2, 1, 3 * 8 + 1, 8]


def test_tensors_need_metal_4():
    with pytest.raises(CompileError, match=r"needs Metal 4: -std=metal4\.0"):
        simulator.compiler.compile(HEAD + "kernel void k() {}", "/dev/null", std="metal3.2")


ONE = """
kernel void k(device half* x, device float* out, constant int& extent,
              uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  using operand = tensor<device half, dextents<int, 2>, tensor_inline>;
  constexpr auto descriptor = matmul2d_descriptor(16, 16, DEPTH);
  matmul2d<descriptor, SCOPE> op;
  operand a(x, dextents<int, 2>(extent, 16), array<int, 2>{STRIDE, 16});
  auto c = op.template get_destination_cooperative_tensor<operand, operand, float>();
  if (CONDITION) op.run(a, a, c);
  if (simdgroup == 0) c.store(tensor<device float, dextents<int, 2>, tensor_inline>(out, dextents<int, 2>(16, 16)));
}
"""


def run_one(threads=32, extent=16, DEPTH="16", SCOPE="execution_simdgroup", STRIDE="1", CONDITION="true", x=256):
    source = ONE
    for name, value in (("DEPTH", DEPTH), ("SCOPE", SCOPE), ("STRIDE", STRIDE), ("CONDITION", CONDITION)):
        source = source.replace(name, value)
    x, out = torch.ones(x, dtype=torch.float16, device="mps"), torch.empty(16, 16, device="mps")
    compiled(source).k(x, out, extent, threads=threads, group_size=threads, arg_casts={2: "int32"})
    return out.cpu()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CONDITION": "lane < 16"}, "matmul2d needs all 32 lanes of the simdgroup"),
        ({"STRIDE": "2", "x": 512}, "matmul2d needs tensors whose first stride is 1"),
        ({"extent": 15}, "matmul2d reads beyond an operand: its k is less than the descriptor's"),
        (
            {"SCOPE": "execution_simdgroups<2>"},
            "matmul2d runs on another number of simdgroups than the threadgroup has",
        ),
    ],
    ids=["lanes", "stride", "k", "simdgroups"],
)
def test_what_hardware_leaves_undefined_is_an_error(change, message):
    assert torch.equal(run_one(), torch.full((16, 16), 16.0))
    with pytest.raises(RuntimeError, match=message):  # noqa: PT012  (of the call, or once it has run)
        run_one(**change)
        simulator._simulator.synchronize()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("constexpr auto d = matmul2d_descriptor(12, 16, 16); matmul2d<d, execution_simdgroup> op;", "multiples of 8"),
        ("constexpr auto d = matmul2d_descriptor(16, 16, 20); matmul2d<d, execution_simdgroup> op;", "multiple of 16"),
    ],
    ids=["m", "k"],
)
def test_what_is_not_supported_does_not_compile(source, message):
    with pytest.raises(CompileError, match=message):
        compiled(f"kernel void k() {{ {source} auto unused = op; }}")


def test_check_sees_what_matmul2d_reads():
    with simulator.check(report_only=True) as report:
        run_one(x=255)
    finding = report.findings[0]
    assert (finding.kind, finding.access.kind) == ("bounds", "read")
    assert "op.run" in (HEAD + ONE).splitlines()[finding.access.line - 1]
    with simulator.check(report_only=True) as report:
        library = compiled("""
        kernel void k(device half* x, device float* out, uint simdgroup [[simdgroup_index_in_threadgroup]]) {
          using operand = tensor<threadgroup half, dextents<int, 2>, tensor_inline>;
          threadgroup half tile[256];
          const uint lane = simd_prefix_exclusive_sum(1u);
          for (uint i = lane; i < 128; i += 32) tile[128 * simdgroup + i] = x[i];
          constexpr auto descriptor = matmul2d_descriptor(16, 16, 16);
          matmul2d<descriptor, execution_simdgroup> op;
          operand a(tile, dextents<int, 2>(16, 16));
          auto c = op.get_destination_cooperative_tensor<operand, operand, float>();
          op.run(a, a, c);
          if (simdgroup == 0) c.store(tensor(out, dextents<int, 2>(16, 16)));
        }""")
        x, out = torch.ones(128, dtype=torch.float16, device="mps"), torch.empty(256, device="mps")
        library.k(x, out, threads=64, group_size=64)
    assert {finding.kind for finding in report.findings} & {"race", "uninitialised"}


def test_profile_counts_what_matmul2d_does():
    with simulator.profile() as p:
        product(torch.float16, 32, 64, 96, (False, True), tile=(32, 32))
    [dispatch] = p.dispatches
    assert dispatch.tensor_flops == 2 * 32 * 32 * 96  # of the tile, whose operands have more columns
    assert dispatch.matrix_flops == 0
    assert dispatch.device_read == dispatch.device_read_unique == 2 * (32 + 32) * 96
    assert dispatch.device_lines_shared == 0
    with simulator.profile() as p:
        product(torch.float16, 17, 20, 40, tile=(32, 32))
    assert p.dispatches[0].tensor_flops == 2 * 32 * 32 * 48  # k in steps of 16
    assert p.dispatches[0].device_read == 2 * (17 + 20) * 40
