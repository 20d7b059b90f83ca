"""FLUX.1 in miniature: its widths lowered inside mflux, and checkpoints for all its pipelines."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from tests.tiny import tokenizers
from tests.tiny.shrink import Rules, shrunk
from tests.tiny.weights import write_component, write_lora

#: One head of 128: the head's width is tied to the RoPE axes (16 + 56 + 56) and to the timestep projection.
WIDTH = 128
DOUBLE_BLOCKS, SINGLE_BLOCKS = 2, 3

#: Every prompt is padded or cut to this many T5 tokens; a letter is a token here.
TEXT_TOKENS = 32

# Widths are multiples of 64, so that everything can be quantized.
_TRANSFORMER = {3072: WIDTH, 18432: 6 * WIDTH, 9216: 3 * WIDTH, 12288: 4 * WIDTH, 24: 1, 4096: 64, 768: 64}
_SIGLIP = {1152: 32, 4304: 64, 768: 32, 72: 16, 16: 2}

_MODEL = "mflux.models.flux.model."
_VARIANTS = "mflux.models.flux.variants."
RULES: Rules = {
    _MODEL + "flux_transformer": _TRANSFORMER,
    _VARIANTS + "controlnet.transformer_controlnet": _TRANSFORMER,
    _VARIANTS + "concept_attention.transformer_concept": _TRANSFORMER,
    _VARIANTS + "concept_attention.joint_transformer_block_concept": _TRANSFORMER,
    _VARIANTS + "concept_attention.joint_attention_concept": _TRANSFORMER,
    _MODEL + "flux_text_encoder.t5_encoder": {4096: 64, 10240: 128, 32128: tokenizers.VOCABULARY, 24: 2},
    _MODEL + "flux_text_encoder.t5_encoder.t5_self_attention": {4096: 64, "(1, -1, 64, 64)": "(1, -1, 64, 1)"},
    # 12 are layers and heads, 64 is the width of a head.
    _MODEL + "flux_text_encoder.clip_encoder": {768: 64, 3072: 64, 49408: tokenizers.VOCABULARY, 12: 2, 64: 32},
    _MODEL + "flux_vae": {128: 8, 256: 8, 512: 64, 32: 8},  # 32 are the groups of its norms
    _MODEL + "flux_vae.encoder.conv_out": {512: 64},  # 32 are the latent channels
    _MODEL + "siglip_vision_transformer": _SIGLIP,
    _MODEL + "siglip_vision_transformer.siglip_encoder": {27: 2},
    _MODEL + "siglip_vision_transformer.siglip_vision_embeddings": {1152: 32, 14: 128, 27: 3},  # 3 x 3 patches
    _MODEL + "redux_encoder": {1152: 32, 4096: 64},
    _VARIANTS + "in_context.utils.in_context_fill_util": {512: 64},  # in-context edit always works this wide
}

#: kind of checkpoint -> mflux's name of the model it belongs to
KINDS = {
    "dev": "dev",
    "schnell": "schnell",
    "krea-dev": "krea-dev",
    "kontext": "dev-kontext",
    "fill": "dev-fill",
    "depth": "dev-depth",
    "redux": "dev-redux",
    "canny": "dev-controlnet-canny",
    "upscaler": "dev-controlnet-upscaler",
}


@contextlib.contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Make mflux build FLUX.1 tiny, and need no download for the two helpers that live outside a checkpoint.

    * Every `Flux1Depth` loads DepthPro. Here it gets no weights: the class is the real one, but a depth map must be
      given (`depth_image_path`), as it cannot estimate one.
    * `mflux-generate-in-context-edit` always adds a LoRA from the Hugging Face hub. Here it is a tiny one in `folder`.
    """
    from mflux.models.common.config.model_config import AVAILABLE_MODELS
    from mflux.models.depth_pro.depth_pro_initializer import DepthProInitializer
    from mflux.models.flux.cli import flux_generate_in_context_edit

    lora = write_lora(folder / "in-context-edit.safetensors", WIDTH)
    with contextlib.suppress(ImportError):
        import cv2  # noqa: F401 - the canny pipeline would, and it sets environment variables

    with contextlib.ExitStack() as stack:
        stack.enter_context(shrunk(RULES))
        for key in {*KINDS.values(), "dev-fill-catvton"}:
            stack.enter_context(mock.patch.object(AVAILABLE_MODELS[key], "max_sequence_length", TEXT_TOKENS))
        stack.enter_context(
            mock.patch.object(DepthProInitializer, "init", staticmethod(lambda model, quantize=None: None))
        )
        stack.enter_context(
            mock.patch.object(flux_generate_in_context_edit, "get_ic_edit_lora_path", lambda: str(lora))
        )
        yield


def write_flux1(root: Path, kind: str) -> Path:
    """Write a checkpoint of one of the `KINDS` to `root`; `installed` must be active."""
    from mflux.models.common.config.model_config import AVAILABLE_MODELS
    from mflux.models.flux.model.flux_text_encoder.clip_encoder.clip_encoder import CLIPEncoder
    from mflux.models.flux.model.flux_text_encoder.t5_encoder.t5_encoder import T5Encoder
    from mflux.models.flux.model.flux_transformer.transformer import Transformer
    from mflux.models.flux.model.flux_vae.vae import VAE

    config = AVAILABLE_MODELS[KINDS[kind]]
    write_component(root / "transformer", lambda: Transformer(config, DOUBLE_BLOCKS, SINGLE_BLOCKS))
    write_component(root / "text_encoder", CLIPEncoder)
    write_component(root / "text_encoder_2", T5Encoder)
    write_component(root / "vae", VAE)
    tokenizers.write_clip(root / "tokenizer")
    tokenizers.write_t5(root / "tokenizer_2")
    _write_extras(root, kind, config)
    return root


def _write_extras(root: Path, kind: str, config: Any) -> None:
    from mflux.models.flux.model.redux_encoder.redux_encoder import ReduxEncoder
    from mflux.models.flux.model.siglip_vision_transformer.siglip_vision_transformer import SiglipVisionTransformer
    from mflux.models.flux.variants.controlnet.transformer_controlnet import TransformerControlnet

    if kind == "redux":
        write_component(root / "image_encoder", SiglipVisionTransformer)
        write_component(root / "image_embedder", ReduxEncoder)
    if kind in ("canny", "upscaler"):  # the published ones: canny has both kinds of blocks, the upscaler double ones
        singles = 1 if kind == "canny" else 0
        write_component(root / "transformer_controlnet", lambda: TransformerControlnet(config, 1, singles))
