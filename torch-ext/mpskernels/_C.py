"""Stands for the extension module of that name, whose functions are ops here."""

from collections.abc import Callable

from ._ops import ops


def __getattr__(name: str) -> Callable:
    return getattr(ops, name)
