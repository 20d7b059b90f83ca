"""A pytest plugin: load it with `pytest_plugins = ["tests.tiny.fixtures"]`."""

import gc
import os
from collections.abc import Iterator

import pytest

from tests.tiny.commands import eager as run_eagerly
from tests.tiny.workspace import OFFLINE, Tiny, tiny_mflux


def pytest_configure(config: pytest.Config) -> None:
    """Go offline before any test module can import a library that reads the environment."""
    before = {name: os.environ.get(name) for name in OFFLINE}

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    os.environ.update(OFFLINE)
    config.add_cleanup(restore)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    """Tiny mflux for the whole session: `tiny.checkpoint(kind)`, `tiny.pictures`, and whatever a `Case` needs.

    mflux's commands collect garbage twice each, which costs as much as a tiny picture with all of mflux's modules to
    look through; so these are left out from here on.
    """
    with tiny_mflux(tmp_path_factory.mktemp("tiny")) as workspace:
        gc.collect()
        gc.freeze()
        yield workspace


@pytest.fixture
def eager() -> Iterator[None]:
    """Nothing is compiled during this test: faster to start, and no C++ compiler needed on a CPU."""
    with run_eagerly():
        yield
