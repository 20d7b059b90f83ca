"""FLUX.2 Klein in miniature: model entries, a small VAE, and checkpoints."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from tests.tiny import tokenizers
from tests.tiny.shrink import Rules, shrunk
from tests.tiny.weights import write_component

HEADS, HEAD_WIDTH = 2, 32
WIDTH = HEADS * HEAD_WIDTH
DOUBLE_BLOCKS, SINGLE_BLOCKS = 2, 3
TEXT_WIDTH = 64  # as WIDTH a multiple of 64, so that everything can be quantized

#: Every prompt is padded or cut to this many tokens. A letter is a token here, and the chat template takes about 30.
TEXT_TOKENS = 64

#: How mflux asks for text: 512 tokens, and the output of three layers of the encoder.
_TEXT = {512: TEXT_TOKENS, 9: 1, 18: 2, 27: 3}

_FLUX2 = "mflux.models.flux2."
RULES: Rules = {
    _FLUX2 + "model.flux2_text_encoder.prompt_encoder": _TEXT,
    _FLUX2 + "variants.txt2img.flux2_klein": _TEXT,
    _FLUX2 + "variants.edit.flux2_klein_edit_helpers": _TEXT,
    _FLUX2 + "weights.flux2_weight_definition": _TEXT,
}

#: key of the entry -> what is special about it. mflux asks the *name* for "base" before it takes a guidance above 1.
ENTRIES: dict[str, dict[str, Any]] = {
    "flux2-klein-tiny": {},
    "flux2-klein-base-tiny": {},
    "flux2-klein-kv-tiny": {"supports_kv_cache": True},
}

#: Defaults of the VAE's constructors, which its pipelines leave alone; before mflux 0.24 the last one does not exist.
VAE = {
    "block_out_channels": (8, 8, 64, 64),
    "norm_num_groups": 8,
    "decoder_block_out_channels": (8, 8, 64, 64),
}

TRANSFORMER = {
    "num_layers": DOUBLE_BLOCKS,
    "num_single_layers": SINGLE_BLOCKS,
    "num_attention_heads": HEADS,
    "attention_head_dim": HEAD_WIDTH,
    "axes_dims_rope": (8, 8, 8, 8),  # they add up to the head's width
    "joint_attention_dim": 3 * TEXT_WIDTH,  # the pipeline stacks three layers of the text encoder
    "timestep_guidance_channels": 64,
}
TEXT_ENCODER = {
    "vocab_size": tokenizers.VOCABULARY,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 2 * TEXT_WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Make mflux build the FLUX.2 VAE tiny and know the `ENTRIES` under their names, in Python and in its commands."""
    from mflux.cli.defaults import defaults
    from mflux.models.common.config.model_config import AVAILABLE_MODELS
    from mflux.models.flux2.cli import flux2_edit_generate, flux2_generate
    from mflux.models.flux2.model.flux2_vae.decoder.decoder import Flux2Decoder
    from mflux.models.flux2.model.flux2_vae.encoder.encoder import Flux2Encoder
    from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE

    entries = {key: _entry(key, **special) for key, special in ENTRIES.items()}
    with contextlib.ExitStack() as stack:
        stack.callback(_forget_model_names)  # runs last, when the entries are gone again
        stack.enter_context(shrunk(RULES))
        for part in (Flux2VAE, Flux2Encoder, Flux2Decoder):
            stack.enter_context(_defaults(part.__init__, VAE))
        stack.enter_context(mock.patch.dict(AVAILABLE_MODELS, entries))
        stack.enter_context(mock.patch.dict(defaults.MODEL_INFERENCE_STEPS, dict.fromkeys(entries, 4)))
        for command in (flux2_generate, flux2_edit_generate):  # they read the registry at import
            family = tuple(dict.fromkeys((*command.FAMILY_MODELS, *entries)))
            stack.enter_context(mock.patch.object(command, "FAMILY_MODELS", family))
        _forget_model_names()
        yield


@contextlib.contextmanager
def tiny_builtin(key: str) -> Iterator[None]:
    """Give one of mflux's own FLUX.2 entries (such as `flux2-klein-4b`) the tiny geometry.

    For tests in which the model's *name* matters: `--model CHECKPOINT --base-model flux2-klein-4b` then loads.
    """
    from mflux.models.common.config.model_config import AVAILABLE_MODELS

    entry = AVAILABLE_MODELS[key]
    with (
        mock.patch.object(entry, "transformer_overrides", dict(TRANSFORMER)),
        mock.patch.object(entry, "text_encoder_overrides", dict(TEXT_ENCODER)),
    ):
        yield


def write_flux2(root: Path) -> Path:
    """Write a checkpoint to `root`; it fits every one of the `ENTRIES`. `installed` must be active."""
    from mflux.models.flux2.model.flux2_text_encoder.qwen3_text_encoder import Qwen3TextEncoder
    from mflux.models.flux2.model.flux2_transformer.transformer import Flux2Transformer
    from mflux.models.flux2.model.flux2_vae.vae import Flux2VAE

    write_component(root / "transformer", lambda: Flux2Transformer(**TRANSFORMER))
    write_component(root / "text_encoder", lambda: Qwen3TextEncoder(**TEXT_ENCODER))
    write_component(root / "vae", Flux2VAE)
    tokenizers.write_qwen(root / "tokenizer")
    return root


def _entry(key: str, **special: Any) -> Any:
    from mflux.models.common.config.model_config import ModelConfig

    return ModelConfig(
        priority=99,
        aliases=[key],
        model_name=f"tiny/{key}",
        base_model=None,
        controlnet_model=None,
        custom_transformer_model=None,
        num_train_steps=1000,
        max_sequence_length=512,
        supports_guidance=True,
        requires_sigma_shift=True,
        transformer_overrides=dict(TRANSFORMER),
        text_encoder_overrides=dict(TEXT_ENCODER),
        **special,
    )


def _defaults(function: Callable[..., Any], values: Mapping[str, Any]) -> contextlib.AbstractContextManager[Any]:
    """Change the defaults of those parameters that `function` has."""
    optional = [p for p in inspect.signature(function).parameters.values() if p.default is not p.empty]
    new = tuple(values.get(parameter.name, parameter.default) for parameter in optional) or None
    return mock.patch.object(function, "__defaults__", new)


def _forget_model_names() -> None:
    from mflux.cli.defaults import defaults
    from mflux.models.common.resolution.config_resolution import ConfigResolution

    for function in (
        defaults.model_choices,
        defaults.canonical_model_choices,
        ConfigResolution.base_model_names,
        ConfigResolution.base_model_keys,
    ):
        function.cache_clear()
