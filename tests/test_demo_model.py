"""The demo model through mflux's own loader and command: a real model, so that quality can be asserted."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mflux_demo_model as demo_model
import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mflux_teacache_plugin.apply import apply_teacache
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.variants.catalog import load_catalog

EXAMPLES = Path(__file__).parent.parent / "examples" / "demo_model"
STEPS, GUIDANCE, SIDE, WIDE = 25, 4.0, 128, 192
QUANTIZED_STEPS = 12  # a step takes longer then, on a CPU

#: Of the benchmark prompts, eight that are drawn well; the nearest thing is the right one in all 16.
PICTURES = (1, 2, 3, 4, 7, 8, 12, 13)

#: At landing what is recommended gave SSIM 0.9999 on this prompt at 50 steps (plain, as many as were computed: 0.9983); less a
#: margin for another MLX.
CACHED, FULL, SSIM_AT_LANDING, MARGIN = 2, 50, 0.9999, 0.0015

#: PSNR in dB of diffusers' picture (torch, float32) of PARITY_OF and the same noise against mflux's: 65.8 at landing.
PARITY_OF, PARITY = 2, 45.0


pytestmark = pytest.mark.usefixtures("model")


def generate(model, prompt, steps=STEPS, width=SIDE):
    image = model.generate_image(**prompt, num_inference_steps=steps, guidance=GUIDANCE, width=width, height=SIDE)
    return np.asarray(image.image.convert("RGB"))


@pytest.fixture(scope="module")
def model():
    return demo_model.load()


@pytest.fixture(scope="module")
def prompts():
    return demo_model.prompts("benchmark")


@pytest.fixture(scope="module")
def plain(model, prompts):
    """A picture of each of PICTURES, nothing skipped."""
    return {index: generate(model, prompts[index]) for index in PICTURES}


@pytest.fixture(scope="module")
def check():
    """What names a picture's thing and ground; part of the training's scripts."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location("check", EXAMPLES / "check.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["check"] = module  # its dataclass looks there
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in ("check", "data"):
            sys.modules.pop(name, None)


def test_it_is_a_name_only_while_the_plugin_is_connected(connected):
    from mflux.models.common.config.model_config import AVAILABLE_MODELS

    assert demo_model.NAME in AVAILABLE_MODELS


def test_no_default_of_mflux_changes(model):
    import mlx.core as mx
    from mflux.models.common.config.model_config import AVAILABLE_MODELS, ModelConfig
    from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder

    assert demo_model.NAME not in AVAILABLE_MODELS
    assert (128, 256, 512, 512) in Flux2Decoder.__init__.__defaults__
    assert ModelConfig.precision == mx.bfloat16


def test_it_is_small():
    files = [file for file in demo_model.folder().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24_000_000


def test_a_folder_without_the_model_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(demo_model.ENVIRONMENT, str(tmp_path))
    with pytest.raises(SettingsError, match=str(tmp_path)):
        demo_model.folder()


def test_its_own_command_makes_a_picture_and_replays_it(tmp_path):
    """In processes of its own, as a user has it; mflux's command reads the names of its models while it is imported."""

    def run(*options):
        script = Path(sys.executable).with_name("mflux-generate-flux2")
        done = subprocess.run([script, *options], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stderr

    caption = ["--prompt", "a fox on a blue background", "--seed", "1", "--steps", "20"]
    told = run("--model", demo_model.NAME, *caption, "--width", "128", "--height", "128", "--teacache", "--metadata")
    assert f"of 20 steps (2x, {demo_model.NAME}" in told
    recorded = json.loads((tmp_path / "image.metadata.json").read_text())
    assert recorded["teacache_variant"] == demo_model.NAME and recorded["teacache_skipped"] > 0
    run("-C", "image.metadata.json", "--output", "again.png")
    first, again = (np.asarray(Image.open(tmp_path / name)) for name in ("image.png", "again.png"))
    assert np.array_equal(first, again)


def test_pictures_show_what_their_captions_say(plain, prompts, check):
    shown = {prompts[index]["prompt"]: check.describe(plain[index]) for index in PICTURES}
    assert not [f"{caption}: {seen}" for caption, seen in shown.items() if not check.matches(caption, seen)]


def test_a_wider_picture_shows_it_too(model, prompts, check):
    prompt = prompts[CACHED]
    assert check.matches(prompt["prompt"], check.describe(generate(model, prompt, width=WIDE)))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_it_still_shows_it(prompts, check, bits):
    """All widths are multiples of 64, as mflux's quantization asks."""
    from mflux.models.flux2.variants.txt2img.flux2_klein import Flux2Klein

    config = demo_model.models()[demo_model.NAME]
    demo_model.prepare(config)
    quantized = Flux2Klein(model_config=config, quantize=bits)
    prompt = prompts[CACHED]
    assert check.matches(prompt["prompt"], check.describe(generate(quantized, prompt, QUANTIZED_STEPS)))


def test_quality_at_the_default_setting_does_not_fall(model, prompts):
    with apply_teacache(model) as handle:
        cached = generate(model, prompts[CACHED], FULL)
    full, fewer = (generate(model, prompts[CACHED], steps) for steps in (FULL, handle.stats.last.computed))
    assert handle.variant.id == demo_model.NAME and handle.stats.last.skipped > 0
    of_cached, of_fewer = (structural_similarity(full, picture, channel_axis=2) for picture in (cached, fewer))
    assert of_cached >= SSIM_AT_LANDING - MARGIN
    assert of_cached > of_fewer


def test_diffusers_makes_the_same_picture_of_the_same_noise(plain):
    reference = np.asarray(Image.open(Path(__file__).parent / "data" / "demo-diffusers.png").convert("RGB"))
    assert peak_signal_noise_ratio(reference, plain[PARITY_OF]) >= PARITY


def test_its_coefficients_are_a_fit_of_its_own():
    variant = load_catalog(environ={}).variants[demo_model.NAME].variant
    assert variant.provenance.fitted and variant.provenance.r2 is not None
    prompts = {
        purpose: {prompt["prompt"] for prompt in demo_model.prompts(purpose)}
        for purpose in ("demo", "benchmark", "calibration")
    }
    assert not prompts["calibration"] & (prompts["demo"] | prompts["benchmark"])


def test_preparing_the_demo_model_twice_is_the_same_as_once(tmp_path):
    """As a script does that builds it with `demo_model.load()` while the environment variable is set."""
    from mflux.models.flux2.flux2_initializer import Flux2Initializer

    stock = Flux2Initializer.__dict__["init"]
    config = SimpleNamespace(demo_model=tmp_path)  # in which there is no model
    try:
        demo_model.prepare(config)
        once = Flux2Initializer.__dict__["init"]
        demo_model.prepare(config)
        assert once is not stock and Flux2Initializer.__dict__["init"] is once
        with pytest.raises(FileNotFoundError):
            Flux2Initializer.init(None)
        assert Flux2Initializer.__dict__["init"] is stock, "whatever comes of it"
        demo_model.prepare(SimpleNamespace())
        assert Flux2Initializer.__dict__["init"] is stock, "every other model is mflux's"
    finally:
        Flux2Initializer.init = stock
