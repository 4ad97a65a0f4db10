"""Norms as drop-in modules."""

import torch

import mpskernels


class _LastDimension:
    """Checks that a norm is over the last dimension alone."""

    def __init__(self, normalized_shape: int | list[int] | tuple[int, ...], *args, **kwargs) -> None:
        super().__init__(normalized_shape, *args, **kwargs)
        if len(self.normalized_shape) != 1:
            raise NotImplementedError(
                f"mpskernels.nn.{type(self).__name__}: expected normalized_shape of one dimension, "
                f"got {self.normalized_shape}"
            )


class RMSNorm(_LastDimension, torch.nn.RMSNorm):
    """`torch.nn.RMSNorm` over the last dimension; `offset` is added to the weight, as Gemma's norms add 1.0."""

    def __init__(
        self, normalized_shape: int | list[int] | tuple[int, ...], *args, offset: float = 0.0, **kwargs
    ) -> None:
        super().__init__(normalized_shape, *args, **kwargs)
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return mpskernels.rms_norm(x, self.weight, eps, offset=self.offset)


class LayerNorm(_LastDimension, torch.nn.LayerNorm):
    """`torch.nn.LayerNorm` over the last dimension."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mpskernels.layer_norm(x, self.weight, self.bias, self.eps)


class GroupNorm(torch.nn.GroupNorm):
    """`torch.nn.GroupNorm`; with `silu`, followed by that activation in the same pass."""

    def __init__(self, *args, silu: bool = False, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.silu = silu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mpskernels.group_norm(x, self.num_groups, self.weight, self.bias, self.eps, silu=self.silu)
