"""Where the ops are in torch. Hugging Face's kernel-builder puts a file with the same two names in this one's place."""

import torch

from . import _C  # noqa: F401  (which defines them)

ops = torch.ops.mpsk


def add_op_namespace_prefix(op: str) -> str:
    """The name of an op as `torch.library` takes it."""
    return f"mpsk::{op}"
