"""Results of the matmul family do not depend on the order in which threadgroups, simdgroups and lanes run."""

import pytest
from cases import DTYPE_IDS, dtypes
from test_math_mode import SAFE
from test_matmul_repeats import CALLS

from mpskernels import _C, simulator

# Kernels that a chip of 10 cores without matrix units runs, and of which of a product's columns k is split.
KERNELS = {
    "linear": ["matmul_tile"],
    "linear_split_in_part": ["matmul_sum", "matmul_tile, some split"],
    "linear_split": ["matmul_sum", "matmul_tile, all split"],
    "linear_skinny_k_split": ["matmul_skinny_k, all split", "matmul_sum"],
    "matmul_skinny_n_split": ["matmul_skinny_n, all split", "matmul_sum"],
    "gated_linear": ["matmul_gated"],
    "gated_linear_split_in_part": ["matmul_gated, some split", "matmul_sum"],
    "gated_linear_split": ["matmul_gated, all split", "matmul_sum"],
    "gated_linear_skinny_k": ["matmul_skinny_k"],
    "gated_linear_skinny_k_split": ["matmul_skinny_k, all split", "matmul_sum"],
    "grouped_matmul": ["matmul_tile"],
    "gathered_matmul": ["matmul_tile"],
    "grouped_matmul_backward": ["matmul_tile"],
    "gathered_matmul_backward": ["matmul_tile"],
    "grouped_matmul_scatter": ["grouped_matmul_scatter"],
    "linear_backward": ["linear_backward", "matmul_sum"],
    "linear_backward_of_bias": ["linear_backward", "matmul_sum"],
}


def launched(call, dtype):
    _C.reset_launches()
    call()
    labels = [label for labels in _C.launches().values() for label in labels]

    def split(label):  # whoever finishes a column applies the activation to it
        finishes = ", some split" if "activation=1" in label else ", all split"
        return finishes if "partial=1" in label else ""

    return sorted(label.split(f"_{DTYPE_IDS[dtype]}")[0] + split(label) for label in labels)


@pytest.fixture(scope="module", autouse=True)
def kernels_in_safe_math():
    """Those that `make test` checks: to instrument others would take half a minute more."""
    before = _C.metallib_path()
    _C.set_metallib(str(SAFE))
    yield
    _C.set_metallib(before)


@dtypes
@pytest.mark.parametrize("name", CALLS)
def test_results_do_not_depend_on_the_order_of_threads(name, dtype):
    run = CALLS[name](dtype)
    if name in KERNELS and _C.tensor_units_problem():
        assert launched(run, dtype) == KERNELS[name]
    assert simulator.compare_schedules(run).findings == []
