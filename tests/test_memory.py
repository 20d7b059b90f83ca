"""What a cache holds, and when it lets go: with the garbage collector switched off, as the memory of a model matters at once."""

import gc
import itertools
import statistics
import weakref
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import pytest

from mflux_teacache_plugin import apply, apply_teacache
from mflux_teacache_plugin.host.layers import stand_before
from tests.support import a_variant
from tests.tiny.cases import Case, case

pytestmark = pytest.mark.usefixtures("eager")

FLUX1, BASE = case("flux1"), case("klein-base")
METHODS = ["2", "2x+reuse", "seacache:2+linear", "dualcache:F=1,rdt=0.999,warmup=0"]
SMALL = {"num_inference_steps": 6, "width": 32, "height": 32}


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def references(model: Any) -> list[weakref.ref]:
    """To the pipeline, its transformer and one block: whoever holds one of them holds gigabytes."""
    return [weakref.ref(each) for each in (model, model.transformer, model.transformer.transformer_blocks[0])]


def alive(held: list[weakref.ref]) -> list[str]:
    return [type(found).__name__ for reference in held if (found := reference()) is not None]


@pytest.mark.parametrize("case", [FLUX1, BASE], ids=str)
@pytest.mark.parametrize("method", [None, *METHODS])
def test_a_model_is_free_after_restore_and_del(case: Case, method: str | None, tiny, no_collector) -> None:
    """`None` is stock mflux, the measure of it."""
    model = case.build(tiny)
    held = references(model)
    handle = None if method is None else apply_teacache(model, method, variant=a_variant(case))
    case.generate(model, tiny, **SMALL)
    if handle is not None:
        assert handle.stats.skipped > 0
        handle.restore()
    del model
    assert alive(held) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_handle_does_not_keep_its_model(method: str, tiny, no_collector) -> None:
    model = FLUX1.build(tiny)
    held = references(model)
    handle = apply_teacache(model, method, variant=a_variant(FLUX1))
    FLUX1.generate(model, tiny, **SMALL)
    del model
    assert alive(held) == []
    handle.restore()  # there is nothing left to restore, and that is no error
    assert handle.stats.skipped > 0


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_the_environment_is_free_when_it_goes_out_of_scope(
    method: str, tiny, connected, monkeypatch, no_collector
) -> None:
    monkeypatch.setenv("MFLUX_TEACACHE", method)

    def pictures() -> list[weakref.ref]:
        model = FLUX1.build(tiny)
        assert apply.handle_of(model) is not None
        FLUX1.generate(model, tiny, **SMALL)
        return references(model)

    assert alive(pictures()) == []


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("restored", [True, False])
def test_a_model_whose_generation_raised_is_free(method: str, restored: bool, tiny, no_collector) -> None:
    model = BASE.build(tiny)
    held = references(model)
    handle = apply_teacache(model, method, variant=a_variant(BASE))
    calls: list[int] = []

    def layer(inner: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) >= 5:
            raise ValueError("in the middle")
        return inner(*args, **kwargs)

    stand_before(model.transformer.x_embedder, "__call__", layer)
    with pytest.raises(ValueError, match="in the middle") as raised:
        BASE.generate(model, tiny, **SMALL)
    raised.value.__traceback__ = None  # which holds every frame, and so the model
    del raised
    assert handle._cache is None and handle._interception is None and not handle._arguments
    if restored:
        handle.restore()
    del model
    assert alive(held) == []


@pytest.mark.compiles
@pytest.mark.parametrize("method", [None, "2"])
def test_a_compiled_model_too(method: str | None, tiny, no_collector) -> None:
    mx.enable_compile()
    model = BASE.build(tiny)
    held = references(model)
    handle = None if method is None else apply_teacache(model, method, variant=a_variant(BASE))
    BASE.generate(model, tiny, **SMALL)
    if handle is not None:
        handle.restore()
    del model
    assert alive(held) == []


@pytest.mark.parametrize("method", METHODS)
def test_picture_after_picture_takes_no_more_memory(method: str, tiny, no_collector) -> None:
    model = FLUX1.build(tiny)

    def growth() -> float:
        """In bytes, what a picture adds, the median of four after a first one: at a reading, a scalar may still be on
        its way (4 bytes more once). mflux itself leaves some, for the collector."""
        active = []
        for seed in range(5):
            FLUX1.generate(model, tiny, seed=seed, **SMALL)
            mx.synchronize()
            active.append(mx.get_active_memory())
        return statistics.median(after - before for before, after in itertools.pairwise(active))

    plain = growth()
    with apply_teacache(model, method, variant=a_variant(FLUX1)) as handle:
        assert growth() <= plain < 250
    assert handle.stats.skipped > 0
