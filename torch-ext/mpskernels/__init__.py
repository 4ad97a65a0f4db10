"""The ops of mpskernels, hand-written Metal kernels for PyTorch on Apple GPUs, as a kernel of the Hugging Face Hub."""

from . import layers, ops
from .ops import *  # noqa: F403

__all__ = [*ops.__all__, "layers"]
