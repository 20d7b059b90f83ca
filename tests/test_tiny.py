"""The tiny checkpoints themselves: every pipeline and every command runs on them, and gives the same picture twice."""

import functools
import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.tiny import flux1, flux2
from tests.tiny.cases import CASES, STEPS, Case, case
from tests.tiny.commands import has_command, run_command
from tests.tiny.shrink import shrunk
from tests.tiny.weights import write_lora


@functools.cache
def _first_picture(case: Case, tiny) -> tuple[np.ndarray, int]:
    """The case's picture through Python, and how often its transformer was called for it."""
    model, calls = case.build(tiny), []
    transformer = type(model.transformer)
    forward = transformer.__call__

    def counted(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    with mock.patch.object(transformer, "__call__", counted):
        return case.generate(model, tiny), len(calls)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_python_gives_the_same_picture_twice(case: Case, tiny, eager):
    first, calls = _first_picture(case, tiny)
    assert first.shape == (case.size[1], case.size[0], 3)
    assert first.std() > 10, "the picture is nearly flat"
    assert calls == case.steps * case.branches
    assert np.array_equal(first, case.generate(case.build(tiny), tiny))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_command_saves_the_picture_that_python_gives(case: Case, tiny, eager):
    saved = case.run(tiny)
    from_python, _ = _first_picture(case, tiny)
    width = saved.pixels.shape[1]  # the in-context commands save the right half
    assert np.array_equal(saved.pixels, from_python[:, -width:]) is not case.command.endswith("in-context-edit"), (
        "the command's picture differs from Python's (it must for in-context edit: only the command adds a LoRA)"
    )


def test_the_cases_cover_every_flux_command():
    flux2_commands = ["mflux-generate-flux2", "mflux-generate-flux2-edit"]
    flux1_commands = {case.command for case in CASES if case.family == "flux1"}
    assert len(flux1_commands) == 12
    assert all(map(has_command, flux1_commands))
    assert sorted({case.command for case in CASES if case.family == "flux2"}) == flux2_commands


@pytest.mark.compiles
def test_compiled_runs_are_bit_identical(tiny):
    model = case("klein").build(tiny)
    first, second = case("klein").generate(model, tiny), case("klein").generate(model, tiny)
    assert np.array_equal(first, second)


@pytest.mark.parametrize("id", ["flux1", "klein"])
def test_quantized_with_lora_and_little_memory(id: str, tiny, eager, tmp_path: Path):
    width = {"flux1": flux1.WIDTH, "flux2": flux2.WIDTH}[case(id).family]
    lora = write_lora(tmp_path / "lora.safetensors", width)
    saved = case(id).run(tiny, "-q", "8", "--lora", lora, "0.8", "--low-ram", "--make-conf")
    assert [path.name for path in saved.paths] == ["image.metadata.json", "image.png"]
    assert json.loads(saved.paths[0].read_text())["quantize"] == 8


def test_a_base_entry_of_mflux_can_be_tiny(tiny, eager):
    with flux2.tiny_builtin("flux2-klein-4b"):
        saved = case("klein").run(tiny, "--base-model", "flux2-klein-4b")
    assert np.array_equal(saved.pixels, _first_picture(case("klein"), tiny)[0])


def test_a_command_leaves_nothing_behind(tiny, eager):
    import mlx.core as mx
    from mflux.utils.generated_image import GeneratedImage
    from mflux.utils.image_util import ImageUtil

    def state():
        limit = mx.set_cache_limit(0)
        mx.set_cache_limit(limit)
        kept = vars(GeneratedImage).get("model_path"), ImageUtil.embed_metadata_enabled, list(logging.root.handlers)
        return limit, *kept, list(sys.argv), dict(os.environ)

    before = state()
    case("klein").run(tiny, "--no-exif", "--mlx-cache-limit-gb", "0.5")
    assert state() == before
    with pytest.raises(SystemExit):
        case("klein").run(tiny, "--no-such-option")
    assert state() == before


def test_a_command_that_saves_nothing_is_reported(tmp_path: Path):
    with (
        mock.patch("mflux.cli.completions.install.main"),
        pytest.raises(FileNotFoundError, match="mflux-completions saved no picture"),
    ):
        run_command("mflux-completions", [], tmp_path)


def test_shrunk_lowers_literals_and_restores_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = """
        WIDTH = 3072
        class Layer:
            heads = 24
            def __init__(self, width=3072, *, depth=24): self.width, self.depth = width, depth
            @staticmethod
            def shape(): return (24, 24), [3072 * n for n in (1, 2)], "3072"
    """
    (tmp_path / "wide_module.py").write_text("\n".join(line[8:] for line in source.splitlines()))
    monkeypatch.syspath_prepend(tmp_path)
    import wide_module as module

    layer = module.Layer

    def values(module: types.ModuleType):
        return module.WIDTH, module.Layer.heads, vars(module.Layer()), module.Layer.shape()

    before = values(module)
    with shrunk({"wide_module": {3072: 8, 24: 2, "(24, 24)": "(2, 3)"}}):
        assert values(module) == (8, 2, {"width": 8, "depth": 2}, ((2, 3), [8, 16], "3072"))
        assert module.Layer is layer
    assert values(module) == before
    del sys.modules["wide_module"]


def test_everything_is_put_back(tmp_path: Path):
    script = """
import os, sys
from pathlib import Path
from mflux.cli.defaults import defaults
from mflux.models.common.config.model_config import AVAILABLE_MODELS
from mflux.models.depth_pro.depth_pro_initializer import DepthProInitializer
from mflux.models.flux2.cli import flux2_generate
from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
from mflux.models.flux.model.flux_transformer.feed_forward import FeedForward
from tests.tiny.workspace import tiny_mflux

def state():
    return (
        sorted(AVAILABLE_MODELS), AVAILABLE_MODELS["dev"].max_sequence_length, defaults.model_choices(),
        dict(defaults.MODEL_INFERENCE_STEPS), flux2_generate.FAMILY_MODELS, vars(DepthProInitializer)["init"],
        Flux2Encoder.__init__.__defaults__, FeedForward.__init__.__code__, dict(os.environ), list(sys.meta_path),
    )

before = state()
with tiny_mflux(Path(sys.argv[1])):
    assert all(new != old for new, old in zip(state()[:-1], before)), state()
assert state() == before
"""
    environment = {name: value for name, value in os.environ.items() if name != "HF_DATASETS_OFFLINE"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, env=environment)


def test_a_command_in_its_own_process(tmp_path: Path):
    picture = tmp_path / "picture.png"
    command = ["mflux-generate-flux2", "--model", "flux2", "--base-model", "flux2-klein-tiny", "--steps", str(STEPS)]
    options = ["--prompt", "x", "--width", "64", "--height", "64", "--output", str(picture)]
    subprocess.run(
        [sys.executable, "-m", "tests.tiny", str(tmp_path), *command, *options],
        check=True,
        env={**os.environ, "MLX_DISABLE_COMPILE": "1"},
    )
    assert picture.exists()
