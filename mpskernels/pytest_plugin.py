"""`pytest -p mpskernels.pytest_plugin --mpsk-check`: the simulator checks the kernels of every test."""

import contextlib

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("mpskernels").addoption(
        "--mpsk-check",
        action="store_true",
        help="fail tests whose kernels do wrong: races, accesses out of bounds, reads of what nobody wrote, ...",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item):
    with _checked(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    with _checked(item):
        return (yield)


def _checked(item: pytest.Item) -> contextlib.AbstractContextManager:
    if not item.config.getoption("--mpsk-check"):
        return contextlib.nullcontext()
    from mpskernels import simulator

    return simulator.check()
