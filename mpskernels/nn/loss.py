"""Losses as drop-in modules."""

import torch

import mpskernels


def _refuse(module: torch.nn.Module, **arguments: object) -> None:
    for name, given in arguments.items():
        if given is not None and given is not False and given != ():
            raise NotImplementedError(f"mpskernels.nn.{type(module).__name__}: {name} is not supported")


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """`torch.nn.CrossEntropyLoss` of targets that are classes, without weights: `mpskernels.cross_entropy`.

    As there, classes are the second dimension of more than one, and are read where they are. `z_loss` and `soft_cap`
    are those of the op; the loss is float32, whatever the dtype of the logits.
    """

    def __init__(
        self, weight: None = None, *args, z_loss: float = 0.0, soft_cap: float | None = None, **kwargs
    ) -> None:
        _refuse(self, weight=weight)
        super().__init__(None, *args, **kwargs)
        self.z_loss, self.soft_cap = z_loss, soft_cap

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return mpskernels.cross_entropy(
            input.movedim(1, -1) if input.dim() > 1 else input,
            target,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            soft_cap=self.soft_cap,
            reduction=self.reduction,
        )


class LinearCrossEntropyLoss(torch.nn.Module):
    """A linear layer without bias and the cross entropy of what it makes, of which it holds `chunk` rows at a time.

    `mpskernels.linear_cross_entropy`, with the parameter `linear.weight` of `torch.nn.LinearCrossEntropyLoss`; tie it
    to an embedding by assigning `linear.weight`. `input` is `(..., in_features)`, `target` `(...)`.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[()] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        soft_cap: float | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        _refuse(self, out_features=out_features, bias=bias, weight=weight)
        self.linear = torch.nn.Linear(in_features, num_classes, bias=False, device=device, dtype=dtype)
        self.options = {
            "ignore_index": -100 if ignore_index is None else ignore_index,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "soft_cap": soft_cap,
            "reduction": reduction,
            "chunk": chunk,
        }

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return mpskernels.linear_cross_entropy(input, self.linear.weight, target, **self.options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())
