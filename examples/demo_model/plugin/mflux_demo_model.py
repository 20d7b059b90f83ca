"""A plugin that makes the demo model a name for `--model`: a tiny FLUX.2 Klein base checkpoint that fits into this repository.

mflux writes some of FLUX.2's sizes as literals. While it builds this one model, and only then, its defaults are those that
`model.json` in the model's folder names; every other model, and every run that does not name this one, sees stock mflux.
"""

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.checks import read_toml
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.host import faults
from mflux_teacache_plugin.host.layers import stand_before
from mflux_teacache_plugin.host.specs import hookimpl

NAME = "flux2-klein-base-demo"

#: The model's folder, where it is not the one beside this plugin.
ENVIRONMENT = "MFLUX_TEACACHE_DEMO"

_COPY = f"a copy of examples/demo_model/{NAME}"


@hookimpl
def mflux_models() -> Mapping[str, Any]:
    return models()


@hookimpl
def mflux_model_loading(model_config: Any | None) -> None:
    prepare(model_config)


def folder() -> Path | None:
    """Where the demo model lies, or None. SettingsError: the environment variable names a folder without the model."""
    named = os.environ.get(ENVIRONMENT)
    path = Path(named) if named else Path(__file__).parent.parent / NAME
    if (path / "model.json").is_file():
        return path.resolve()
    if named:
        raise SettingsError(f"{ENVIRONMENT}: there is no demo model in {named}", hint=f"name {_COPY}")
    return None


def models() -> Mapping[str, Any]:
    """The demo model's name and ModelConfig; empty where the model is not to be found."""
    path = folder()
    if path is None:
        return {}
    from mflux.models.common.config.model_config import ModelConfig

    names = {"model_name": NAME, "aliases": [NAME], "priority": 1000}  # behind every model of mflux's own
    others = dict.fromkeys(("base_model", "controlnet_model", "custom_transformer_model"))
    loop = {"num_train_steps": 1000, "requires_sigma_shift": True, "supports_guidance": True}
    overrides = {key: _sizes(path)[key] for key in ("transformer_overrides", "text_encoder_overrides")}
    config = ModelConfig(**names, **others, **loop, **overrides, max_sequence_length=512)
    config.demo_model = path
    return {NAME: config}


def load() -> Any:
    """The demo model in mflux's own Flux2Klein, from Python. SettingsError if it is not to be found."""
    from mflux.models.flux2.variants.txt2img.flux2_klein import Flux2Klein

    found = models()
    if not found:
        raise SettingsError("there is no demo model", hint=f"set {ENVIRONMENT} to {_COPY}")
    prepare(found[NAME])
    return Flux2Klein(model_config=found[NAME])


def prompts(purpose: str) -> list[dict[str, Any]]:
    """The model's fixed prompts with their seeds: `demo`, `benchmark` or `calibration`. SettingsError for a bad file."""
    path = folder()
    if path is None:
        return []
    file = path / "prompts.toml"
    try:
        found = read_toml(file, SettingsError)[purpose]
        return [{"prompt": str(each["prompt"]), "seed": int(each["seed"])} for each in found]
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        cause = f"prompt and seed in each [[{purpose}]]: {faults.in_words(error)}"
        raise SettingsError(f"{file} is not usable", cause=cause, hint="take a fresh copy of the model") from None


def _sizes(path: Path) -> dict[str, Any]:
    return json.loads((path / "model.json").read_text())


def prepare(model_config: Any) -> None:
    """If this is the demo model's ModelConfig: have mflux build the model that it is about to build in its sizes."""
    path: Path | None = getattr(model_config, "demo_model", None)
    if path is None:
        return
    from mflux.models.flux2.flux2_initializer import Flux2Initializer

    stock = Flux2Initializer.__dict__["init"]
    if hasattr(stock.__func__, "builds_demo_model"):  # asked for twice before it was built
        return

    def init(model: Any, *, model_path: str | None = None, **kwargs: Any) -> None:
        Flux2Initializer.init = stock
        with float32(), _vae_sizes(_sizes(path)["vae"]):
            stock.__func__(model, model_path=model_path or str(path), **kwargs)
        stand_before(model.tokenizers["qwen3"], "tokenize", limited)
        stand_before(model, "generate_image", _in_float32)

    def limited(tokenize: Any, prompt: Any, images: Any = None, max_length: int | None = None, **kwargs: Any) -> Any:
        """mflux asks for 512 text tokens; this model knows fewer."""
        return tokenize(prompt, images, _sizes(path)["text_tokens"], **kwargs)

    init.builds_demo_model = True  # type: ignore[attr-defined]
    Flux2Initializer.init = staticmethod(init)


def _in_float32(generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As fast as bfloat16 on a CPU, and ten times faster with a good BLAS."""
    with float32():
        return generate(*args, **kwargs)


@contextmanager
def float32() -> Iterator[None]:
    """mflux computes in float32 within the block."""
    import mlx.core as mx
    from mflux.models.common.config.model_config import ModelConfig

    stock, ModelConfig.precision = ModelConfig.precision, mx.float32
    try:
        yield
    finally:
        ModelConfig.precision = stock


@contextmanager
def _vae_sizes(sizes: Mapping[str, Any]) -> Iterator[None]:
    """Lower the default sizes of FLUX.2's VAE: those that it passes on to its parts, and theirs."""
    from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder
    from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
    from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE

    sizes = {**sizes, "block_out_channels": tuple(sizes["block_out_channels"])}
    sizes["decoder_block_out_channels"] = sizes["block_out_channels"]
    with ExitStack() as stack:
        for constructor in (Flux2VAE.__init__, Flux2Encoder.__init__, Flux2Decoder.__init__):
            stack.callback(setattr, constructor, "__defaults__", constructor.__defaults__)
            taken = inspect.signature(constructor).parameters.values()
            defaults = {each.name: each.default for each in taken if each.default is not each.empty}
            constructor.__defaults__ = tuple(sizes.get(name, value) for name, value in defaults.items())
        yield
