"""Live previews beside a cache: mlx-taef's callback for mflux, with random weights, looks at every step and changes none.

mlx-taef is only in the environment for mflux 0.23 (`make test-compat`): its extra for mflux wants an older Pillow than 0.24 does.
"""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from mflux_teacache_plugin import apply_teacache
from tests.tiny.cases import Case, case

pytest.importorskip("mlx_taef")

pytestmark = pytest.mark.usefixtures("eager")

STEPS = 6


@pytest.fixture
def preview(tmp_path, monkeypatch) -> Any:
    """mlx-taef's callback, a frame for each step; random weights lie where those that it fetched would."""
    from mlx_taef import download
    from mlx_taef.integrations.mflux import LivePreviewCallback
    from mlx_taef.kernels import KERNELS
    from mlx_taef.kernels._arch import build_arch

    monkeypatch.setattr(download, "CACHE_ROOT", tmp_path / "cache")

    def preview(variant: str) -> LivePreviewCallback:
        kernel = KERNELS[variant]
        sizes = {"latent_channels": kernel.latent.channels, "midblock_gn": kernel.midblock_gn}
        decoder = build_arch(kernel.arch.name, role="decoder", **sizes)
        decoder.update(tree_map(lambda array: 0.1 * mx.random.normal(array.shape), decoder.parameters()))
        place = tmp_path / "cache" / "converted" / f"{kernel.source.cache_key(role='decoder')}.mlx.safetensors"
        place.parent.mkdir(parents=True)
        decoder.save_weights(str(place))
        file = tmp_path / "frames" / "preview.png"
        return LivePreviewCallback(variant=variant, numbered_frames=True, save_to=file, on_error="raise")

    return preview


class Latents:
    """A callback of mflux that keeps the latents of every step, and those after the last one."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def call_in_loop(self, latents: mx.array, **_: Any) -> None:
        self.seen.append(np.array(latents.astype(mx.float32)))

    call_after_loop = call_in_loop


def generated(
    of: Case, tiny: Any, method: str, *callbacks: Any, first: bool = False
) -> tuple[list[np.ndarray], Any, list[bool]]:
    """Latents, picture, and which steps were skipped, with callbacks registered before the cache or behind it."""
    model, latents = of.build(tiny), Latents()
    for each in callbacks if first else ():
        model.callbacks.register(each)
    with apply_teacache(model, method) as handle:
        for each in (*(() if first else callbacks), latents):
            model.callbacks.register(each)
        picture = of.generate(model, tiny, num_inference_steps=STEPS)
    assert handle.stats.last.fault is None
    return latents.seen, picture, [each.skipped for each in handle.stats.last.decisions]


@pytest.mark.parametrize(
    ("id", "variant", "method", "first"),
    [
        ("flux1", "taef1", "2x", False),
        ("klein-base", "taef2", "2x", True),
        ("klein-base", "taef2", "seacache:0.5", False),
    ],
)
def test_a_preview_of_every_step_and_neither_disturbs_the_other(tiny, preview, id, variant, method, first) -> None:
    of = case(id)
    alone = generated(of, tiny, method)
    callback = preview(variant)
    watched = generated(of, tiny, method, callback, first=first)

    assert any(alone[2]) and watched[2] == alone[2], "the same steps are skipped"
    assert len(watched[0]) == len(alone[0]) == STEPS + 1
    assert all(map(np.array_equal, watched[0], alone[0])), "the latents of each step are the same"
    assert np.array_equal(watched[1], alone[1])

    assert len(callback.saved_paths) == STEPS
    frames = [Path(path).read_bytes() for path in callback.saved_paths]
    assert len(set(frames)) == STEPS, "a skipped step moves the picture on too, and its preview shows it"
