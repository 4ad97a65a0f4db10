"""What every benchmark does: check the answer against fp64, then time the call and the wait for its end."""

import sys

import pytest
import torch

import mpskernels

SIMULATED = sys.platform != "darwin"
collect_ignore = [] if SIMULATED else ["bench_simulator.py"]
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Largest difference from fp64, relative to the largest value: a few hundred roundings of fp32, or two of the others.
BOUNDS = {"f32": 1e-5, "f16": 2e-3, "bf16": 1.6e-2}

if SIMULATED:
    mpskernels.simulator.enable()


@pytest.fixture
def tensor():
    """Seeded normal values on the device: tensor(dtype name, *shape)."""
    generator = torch.Generator().manual_seed(0)

    def make(dtype: str, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DTYPES[dtype]).to("mps")

    return make


@pytest.fixture
def compare(benchmark):
    """Times implementations[which](*inputs) in the group <op>/<dtype>/<shape>."""

    def compare(op: str, dtype: str, shape: str, which: str, implementations: dict, inputs: list[torch.Tensor]) -> None:
        run = implementations[which]
        reference = implementations["torch"](*(x.cpu().double() for x in inputs))
        error = ((run(*inputs).cpu().double() - reference).abs().max() / reference.abs().max()).item()
        assert error <= BOUNDS[dtype], f"{which} is wrong: error {error:.1e} against fp64, bound {BOUNDS[dtype]:.1e}"

        def timed() -> None:
            run(*inputs)
            torch.mps.synchronize()

        benchmark.group = f"{op}/{dtype}/{shape}"
        benchmark.extra_info.update(
            implementation=which,
            device=mpskernels.info().device,
            time="wall time of a simulated device, not a GPU's" if SIMULATED else "wall time",
            error=error,
        )
        benchmark.pedantic(timed, warmup_rounds=1, rounds=5)

    return compare
