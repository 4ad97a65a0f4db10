"""The work that the losses do, counted."""

import pytest
import torch
from cases import dtypes, random, to_mps

import mpskernels
from mpskernels import simulator


def rows_of(profile):
    [d] = [d for d in profile.dispatches if d.kernel.startswith("cross_entropy_rows")]
    return d


@dtypes
@pytest.mark.parametrize("classes", [4096, 32768])
def test_cross_entropy_reads_the_logits_once_in_each_direction(dtype, classes):
    logits, targets = to_mps([random(4, classes, dtype=dtype), torch.tensor([1, 5, 9, classes - 1])])
    size = logits.numel() * logits.element_size()
    leaf = logits.requires_grad_()
    with simulator.profile() as forward:
        loss = mpskernels.cross_entropy(leaf, targets)
    with simulator.profile() as backward:
        loss.backward()
    f, b = rows_of(forward), rows_of(backward)
    # Beside the logits: the target, and in backward lse, scale and the gradient of the loss, by each simdgroup.
    limit = 1.03 if classes > 4096 else 1.04
    assert size < f.device_read <= limit * size
    assert size < b.device_read <= limit * size
    assert f.device_written == 4 * 2 * 4  # loss and lse of 4 rows
    assert b.device_written == b.device_written_unique == size
    assert f.barriers == 1
    assert b.barriers == 0
    for d in (f, b):
        assert d.device_lines <= 1.15 * d.device_lines_ideal
        assert d.atomics == 0


@dtypes
@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("longer", [False, True])
def test_gradient_in_the_forward_pass_reads_a_row_again_only_where_registers_are_short(dtype, packs, longer):
    classes = (32768 if dtype == torch.float32 else 65536) + (8 if longer else 0)
    logits, targets = to_mps([random(2, classes + 1, dtype=dtype), torch.tensor([1, classes - 1])])
    logits = logits[:, :-1].contiguous() if packs else logits[:, 1:]
    with simulator.profile() as p:
        mpskernels.cross_entropy_and_gradient(logits, targets)
    d = rows_of(p)
    size = logits.numel() * logits.element_size()
    reads = 2 if longer else 1
    assert reads * size < d.device_read <= 1.03 * reads * size
    assert size < d.device_read_unique <= 1.03 * size
    assert size < d.device_written <= 1.03 * size


def test_linear_cross_entropy_spends_four_products_on_two_gradients():
    hidden, weight = (to_mps(random(*shape)).requires_grad_() for shape in ((64, 32), (256, 32)))
    targets = torch.zeros(64, dtype=torch.int64, device="mps")
    with simulator.profile() as forward:
        loss = mpskernels.linear_cross_entropy(hidden, weight, targets, chunk=32)
    with simulator.profile() as backward:
        loss.backward()
    product = 2 * 64 * 32 * 256
    assert sum(d.matrix_flops for d in forward.dispatches) == product
    assert sum(d.matrix_flops for d in backward.dispatches) == 4 * product
