"""`benchmarks/real_size.py`: mflux's pipelines in their own sizes, as far as nobody evaluates them, and narrow ones at work.

A model at its real size, if only one block of each list, takes gigabytes and minutes on a CPU:

    REAL_SIZE=1 python -m pytest tests/test_real_size.py -k really
"""

import json
import os
import socket
from collections.abc import Iterator

import mlx.core as mx
import pytest
from mflux.models.flux.variants.txt2img.flux import Flux1  # noqa: F401 - before a test looks at what an import changes
from mflux.models.flux2 import flux2_initializer
from mflux.models.qwen import qwen_initializer
from mflux.models.z_image import z_image_initializer
from mlx import nn

from benchmarks import real_size
from benchmarks.real_size import main
from mflux_teacache_plugin import choose
from mflux_teacache_plugin.errors import SettingsError
from tests.tiny import flux1
from tests.tiny.shrink import shrunk

#: One of each pipeline: all it runs on, and parameters in billions.
MODELS = {"dev": 11.90, "flux2-klein-base-4b": 3.88, "qwen-image": 20.43, "z-image": 6.15}

#: What is asked for, where seconds do not matter.
SMALL = ("--size", "64x64", "--layers", "1", "--rounds", "1", "--tokens", "8", "--float32")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, eager: None) -> Iterator[None]:
    """mflux builds its transformers 128 wide, with two or three blocks in each list."""
    klein, qwen = flux2_initializer.Flux2Transformer, qwen_initializer.QwenTransformer
    z_image = z_image_initializer.ZImageTransformer
    one_head = {"num_attention_heads": 1, "joint_attention_dim": 64, "num_layers": 2}
    monkeypatch.setattr(flux2_initializer, "Flux2Transformer", lambda **_: klein(**one_head, num_single_layers=3))
    monkeypatch.setattr(qwen_initializer, "QwenTransformer", lambda: qwen(**one_head))
    small = {"dim": 128, "n_heads": 1, "n_layers": 2, "n_refiner_layers": 1, "cap_feat_dim": 64}
    monkeypatch.setattr(z_image_initializer, "ZImageTransformer", lambda: z_image(**small))
    transformer = "mflux.models.flux.model.flux_transformer"
    with shrunk({transformer: flux1.RULES[transformer]}):
        yield


@pytest.fixture
def sealed(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[None]:
    """Fails the test where something is downloaded, or written into the working folder or a cache, or mflux is not as found."""
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.common.tokenizer import TokenizerLoader
    from mflux.models.common.weights.loading.weight_applier import WeightApplier
    from mflux.models.common.weights.loading.weight_loader import WeightLoader

    def connect(*_: object) -> None:
        raise AssertionError("it went to the network")

    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(socket.socket, "connect", connect)
    for name in ("HF_HOME", "MFLUX_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(folder / name))
    classes = (WeightLoader, WeightApplier, TokenizerLoader, ModelConfig)
    before = [dict(vars(cls)) for cls in classes]
    yield
    assert [dict(vars(cls)) for cls in classes] == before
    assert not list(folder.iterdir())


@pytest.mark.parametrize(("name", "billions"), MODELS.items())
def test_real_sizes_take_no_memory_until_they_are_evaluated(name: str, billions: float, sealed) -> None:
    before = mx.get_active_memory()
    model, _ = real_size.build(name)
    assert sum(array.size for array in real_size.weights(model)) / 1e9 == pytest.approx(billions, abs=0.01)
    assert {array.dtype for array in real_size.weights(model)} == {mx.bfloat16}
    assert mx.get_active_memory() - before < 50e6


@pytest.mark.parametrize("name", real_size.MODELS)
def test_every_model_is_built_and_quantized_as_mflux_does_it(name: str, sealed) -> None:
    model, blocks = real_size.build(name, quantize=4, layers=(1,))
    assert any(isinstance(module, nn.QuantizedLinear) for _, module in model.named_modules())
    assert all(text.startswith("1 of ") for text in blocks.values())
    adapter, *_ = choose.serving_adapters(type(model)).values()
    assert list(blocks) == list(adapter.taps.blocks)


@pytest.mark.parametrize("guidance", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_a_loop_of_each_pipeline(name: str, guidance: int, narrow, sealed, capsys) -> None:
    argv = [name, "2x", *SMALL, "--steps", "6", "--guidance", str(guidance), "--format", "json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["setting"]: row for row in found["rows"]}
    assert rows["plain"]["computed"] == 6 and rows["plain"]["of_plain"] == 1 and rows["plain"]["kept_mb"] == 0
    assert rows["2x"]["computed"] == 3 and rows["2x"]["skipped_step"] < 1
    nothing = [name for name in ("steps:0-5", *real_size.IDLE) if name in rows]
    assert {"steps:0-5", "seacache:1e-9", "dualcache:F=1,B=0,rdt=1e-9"} <= set(nothing)
    assert all(rows[name]["computed"] == 6 and rows[name]["skipped_step"] is None for name in nothing)
    assert all(row["seconds"] > 0 and row["kept"] for row in rows.values() if row["setting"] != "plain")
    assert "1 of 2 " in found["model"] or "1 of 3 " in found["model"] or "1 of 19" in found["model"]
    assert found["markdown"].startswith("| ") and "64x64, 6 steps" in found["markdown"]


def test_what_a_schedule_keeps(narrow, sealed) -> None:
    """The predictions of the last two computed steps: latents of 16 tokens."""
    model, _ = real_size.build("flux2-klein-base-4b", tokens=8)
    rows = real_size.measure(model, {"plain": None, "2x": "2x"}, 1, 6, width=64, height=64, guidance=4.0)
    assert rows[1]["kept"].startswith("2 of (1, 16, 128) bfloat16"), "and the signs of the forecast's check"
    assert rows[1]["kept_mb"] == pytest.approx(2 * 16 * 128 * 2 / 1e6, rel=1e-3)


def test_the_text_says_what_it_is(narrow, sealed, capsys) -> None:
    assert main(["flux2-klein-4b", *SMALL, "2x", "--steps", "6", "1.5x"]) == 0  # settings may come after options
    out, err = capsys.readouterr()
    assert "no picture is made" in out and "1 of 2 transformer_blocks" in out
    assert "| 2x " in out and ", 1.5x " in out
    assert "loop" in err  # the bar


def test_too_little_memory_is_refused_with_the_numbers(monkeypatch, sealed, capsys) -> None:
    monkeypatch.setattr(mx, "device_info", lambda: {"free_memory": 24 * 10**9})
    before = mx.get_active_memory()
    assert main(["qwen-image"]) == 2
    said = capsys.readouterr().err
    assert "GB are needed, and 24.0 GB are there" in said and "40.9 GB of weights" in said and "-q 4" in said
    assert mx.get_active_memory() - before < 50e6


@pytest.mark.parametrize(("setting", "message"), [("20x", "20x"), ("off", "'off' is no setting to try")])
def test_settings_that_make_no_sense_are_refused_before_anything_is_evaluated(setting, message, sealed, capsys) -> None:
    try:
        code = main(["qwen-image", setting])
    except SystemExit as left:
        code = left.code
    assert code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [("--size", "64"), ("--size", "0x64"), ("--layers", "1,"), ("--steps", "0"), ("-q", "7")]
)
def test_numbers_that_make_no_sense_are_refused(options: tuple[str, str], capsys) -> None:
    with pytest.raises(SystemExit) as left:
        main(["dev", *options])
    assert left.value.code == 2 and f"argument {options[0]}" in capsys.readouterr().err


def test_a_schedule_needs_steps(sealed) -> None:
    model, _ = real_size.build("schnell")
    with pytest.raises(SettingsError, match="4 steps at 2x"):
        real_size.candidates(model, ["2x"], 4)


@pytest.mark.skipif("REAL_SIZE" not in os.environ, reason="takes gigabytes and minutes; set REAL_SIZE=1")
def test_really(sealed, capsys) -> None:
    assert main(["flux2-klein-base-4b", "2x", *SMALL, "--steps", "6", "--guidance", "1"]) == 0
    assert "1 of 5 transformer_blocks" in capsys.readouterr().out
