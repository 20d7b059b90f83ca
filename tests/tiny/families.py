"""Tiny pipelines of the other families: mflux's real `generate_image` and a transformer of mflux's class with small sizes.

Loading, text encoders and VAEs are left out: they have nothing to do with steps, and seventeen of them would be seventeen
checkpoints. A pipeline is made without its `__init__`, gets random embeddings for whatever prompt it encodes, and a VAE that
answers with random latents and a grey picture. Everything in between is mflux's own code.

    with family("ernie-image").model() as model:
        image, latents = family.generate(model, photo)
"""

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import mlx.core as mx
import pytest
from mlx import nn
from mlx.utils import tree_map

from tests.tiny.shrink import Rules, shrunk

#: Side of every picture, and tokens of every prompt.
SIDE, TOKENS = 32, 8
STEPS = 8
JSON_PROMPT = '{"edit_instruction": "make it tiny"}'
WIDTH = 24  #: of the embeddings

_MODELS = "mflux.models."


@dataclass(frozen=True)
class Family:
    """A pipeline in miniature.

    Attributes:
        id: of the case; the adapter's, and what is special about it.
        pipeline: "module:Class", the module below `mflux.models`.
        config: the name of a method of mflux's ModelConfig.
        build: makes what the pipeline holds, by attribute.
        arguments: of `generate_image`, beside seed, prompt, steps and size, given some picture.
        patches: names below `mflux.models` to replace for a while, the prompt encoders mostly.
        calls: how often a step calls what is intercepted.
        silent: last steps that call nothing.
        late: first steps that are left out.
        rules: literals to lower, see `shrink`.
    """

    id: str
    pipeline: str
    config: str
    build: Callable[[], dict[str, Any]]
    arguments: Callable[[Path], dict[str, Any]] = lambda photo: {}
    patches: dict[str, Any] = field(default_factory=dict)
    calls: int = 1
    silent: int = 0
    late: int = 0
    rules: Rules = field(default_factory=dict)

    def __str__(self) -> str:
        return self.id

    @property
    def adapter(self) -> str:
        return self.id.partition(":")[0]

    @property
    def pipeline_class(self) -> type:
        module, name = self.pipeline.split(":")
        return getattr(importlib.import_module(_MODELS + module), name)

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block the pipeline's constructor, in mflux's commands too, makes it tiny, whatever it is given."""
        from mflux.models.common.config.model_config import ModelConfig

        pipeline = self.pipeline_class

        @functools.wraps(pipeline.__init__)
        def __init__(model: Any, *_: Any, **options: Any) -> None:
            if isinstance(model, nn.Module):
                nn.Module.__init__(model)
            self._fill(model, options.get("model_config") or getattr(ModelConfig, self.config)())

        with contextlib.ExitStack() as stack:
            stack.enter_context(shrunk(self.rules))
            stack.enter_context(mock.patch.object(ModelConfig, "precision", mx.float32))
            stack.enter_context(mock.patch.object(pipeline, "__init__", __init__))
            for name, value in self.patches.items():
                stack.enter_context(mock.patch(_MODELS + name, value))
            yield

    @contextlib.contextmanager
    def model(self) -> Iterator[Any]:
        """The pipeline, ready to generate; the patches hold within the block."""
        with self.installed():
            yield self.pipeline_class()

    def _fill(self, model: Any, model_config: Any) -> None:
        from mflux.callbacks.callback_registry import CallbackRegistry
        from mflux.models.common.compute_precision import ComputePrecision

        mx.random.seed(3)
        held = dict.fromkeys(("bits", "lora_paths", "lora_scales", "tiling_config", "text_encoder", "fonts_dir"))
        held |= {"prompt_cache": {}, "tokenizers": _Anything(), "float32": False, "bake_lora": True}
        held |= {"compute_precision": ComputePrecision(None), "callbacks": CallbackRegistry(), "vae": Vae()}
        for name, value in {**held, "model_config": model_config, **self.build()}.items():
            setattr(model, name, _randomized(value) if isinstance(value, nn.Module) else value)

    def generate(self, model: Any, photo: Path, steps: int = STEPS, **more: Any) -> tuple[Any, mx.array]:
        """mflux's GeneratedImage, of so many steps, and the latents that were to be decoded."""
        standard = {"seed": 7, "prompt": "a tiny random picture", "num_inference_steps": steps}
        standard |= {"width": SIDE, "height": SIDE}
        ended: list[mx.array] = []
        loop = SimpleNamespace(call_after_loop=lambda latents, **_: ended.append(latents))
        model.callbacks.register(loop)
        try:
            image = model.generate_image(**{**standard, **self.arguments(photo), **more})
        finally:
            model.callbacks.after_loop.remove(loop)
        return image, ended[0]


class Vae:
    """Stands for every VAE: latents of so many channels, an eighth as large, for a picture; a grey picture for latents."""

    decode_mode = "legacy"

    def __init__(self, channels: int = 16, shrinks: int = 8, dimensions: int = 5) -> None:
        self.channels, self.shrinks, self.dimensions = channels, shrinks, dimensions
        self.bn = SimpleNamespace(running_mean=mx.zeros(4 * channels), running_var=mx.ones(4 * channels), eps=0.0)

    def encode(self, image: mx.array) -> mx.array:
        height, width = (side // self.shrinks for side in image.shape[-2:])
        middle = (1,) * (self.dimensions - 4)
        return mx.random.normal((1, self.channels, *middle, height, width), key=mx.random.key(5))

    def normalize_latents(self, latents: mx.array) -> mx.array:
        return latents

    def decode(self, latents: mx.array, **_: Any) -> mx.array:
        return mx.zeros((1, 3, SIDE, SIDE))

    decode_packed_latents = decode


class _Anything(dict):
    """Has every key."""

    def __missing__(self, key: str) -> None:
        return None


def _randomized(module: nn.Module) -> nn.Module:
    """Random weights: some layers of mflux's start as zeros, which would make every prediction the same."""

    def random(array: mx.array) -> mx.array:
        return mx.random.normal(array.shape) * 0.1 if mx.issubdtype(array.dtype, mx.floating) else array

    module.update(tree_map(random, module.parameters()))
    return module


def embeddings(*shape: int, seed: int = 0) -> mx.array:
    """What a text encoder might give; the same for the same seed."""
    return mx.random.normal(shape, key=mx.random.key(seed))


def _encoded(*shape: int) -> Callable[..., mx.array]:
    """In place of an encoder of one prompt: one that tells prompts apart by their length."""

    def encode(prompt: str, *_: Any, **__: Any) -> mx.array:
        return embeddings(*shape, seed=len(str(prompt)))

    return encode


def _mask() -> mx.array:
    return mx.ones((1, TOKENS), dtype=mx.int32)


def _qwen_rope() -> Any:
    from mflux.models.qwen.model.qwen_transformer.qwen_rope import QwenEmbedRopeMLX

    return QwenEmbedRopeMLX(theta=10000, axes_dim=[8, 12, 12], scale_rope=True)


def _qwen() -> dict[str, Any]:
    from mflux.models.qwen.model.qwen_transformer.qwen_transformer import QwenTransformer

    transformer = QwenTransformer(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=WIDTH,
    )  # fmt: skip
    transformer.pos_embed = _qwen_rope()
    return {"transformer": transformer}


_QWEN_PROMPTS = (embeddings(1, TOKENS, WIDTH), _mask(), embeddings(1, TOKENS, WIDTH, seed=1), _mask())
_QWEN21 = {
    "in_channels": 64, "out_channels": 64, "num_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2,
    "mlp_ratio": 3, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip


def _qwen21() -> dict[str, Any]:
    from mflux.models.qwen21.model.qwen21_transformer.qwen21_transformer import Qwen21Transformer

    return {"transformer": Qwen21Transformer(**_QWEN21, context_in_dim=WIDTH)}


def _qwen21_edit() -> dict[str, Any]:
    from mflux.models.qwen21.model.qwen21_transformer.qwen_image21_transformer import QwenImage21Transformer

    size = {"shortest_edge": 1, "longest_edge": 1 << 30}
    return {
        "transformer": QwenImage21Transformer({**_QWEN21, "context_in_dim": WIDTH}),
        "processor": SimpleNamespace(image_processor=SimpleNamespace(size=size)),
        "vae": Vae(64, 16),
    }


def _qwen21_controlnet() -> dict[str, Any]:
    from mflux.models.qwen21.variants.controlnet.qwen_image21_controlnet_transformer import QwenImage21ControlNet

    return {**_qwen21_edit(), "controlnet": QwenImage21ControlNet(_QWEN21)}


def _qwen21_slots(model: Any, prompt: str, images: Any = ()) -> tuple[mx.array, mx.array]:
    """Embeddings and, for each of their places, whether a reference picture of SIDE pixels goes there, in squares of four."""
    pictures = [True] * ((SIDE // 32) ** 2 * len(images))
    slots = [*pictures, *[False] * TOKENS]
    return embeddings(1, len(slots), WIDTH, seed=len(prompt)), mx.array([slots])


def _z_image() -> dict[str, Any]:
    from mflux.models.z_image.model.z_image_transformer.transformer import ZImageTransformer

    return {
        "transformer": ZImageTransformer(
            in_channels=16, dim=96, n_layers=2, n_refiner_layers=1, n_heads=3, cap_feat_dim=WIDTH, axes_dims=[8, 12, 12]
        )
    }


def _z_image_controlnet() -> dict[str, Any]:
    def controlnet(x: mx.array, **_: Any) -> dict[int, mx.array]:
        return {0: 0.1 * embeddings(1, 64, 96)}

    controlnet.config = SimpleNamespace(control_in_dim=33)  # type: ignore[attr-defined]
    return {**_z_image(), "controlnet": controlnet}


def _fibo() -> dict[str, Any]:
    from mflux.models.fibo.model.fibo_transformer.transformer import FiboTransformer

    return {"transformer": FiboTransformer(in_channels=48, num_layers=1, num_single_layers=2), "vae": Vae(48, 16)}


_FIBO_RULES = {"mflux.models.fibo.model.fibo_transformer": {3072: 128, 4096: 64, 1536: 64, 2048: 32, 24: 1}}


def _fibo_prompts(guidance: float, **_: Any) -> tuple[str, mx.array, list[mx.array]]:
    prompts = (0,) if guidance == 1.0 else (1, 0)  # the negative one first

    def batch(width: int) -> mx.array:
        return mx.concatenate([embeddings(1, TOKENS, width, seed=seed) for seed in prompts])

    return "{}", batch(64), [batch(32) for _ in range(3)]


def _fibo2() -> dict[str, Any]:
    from mflux.models.fibo2.model.fibo2_transformer.fibo2_transformer import Fibo2Transformer

    transformer = Fibo2Transformer(
        in_channels=32, dim=96, n_layers=2, n_refiner_layers=1, n_heads=3, cap_feat_dim=WIDTH,
        injection_layer_ids=(1,), perceiver_num_layers=1, max_num_gist_tokens=8, axes_dims=(8, 12, 12),
    )  # fmt: skip
    transformer.perceiver.min_gist = transformer.perceiver.gist_step = 4
    return {"transformer": transformer, "vae": Vae(32)}


def _krea2() -> dict[str, Any]:
    from mflux.models.krea2.model.krea2_transformer.transformer import Krea2Transformer

    transformer = Krea2Transformer(
        features=96,
        tdim=32,
        txtdim=WIDTH,
        heads=3,
        kvheads=3,
        layers=2,
        channels=16,
        txtlayers=2,
        txtheads=2,
        txtkvheads=2,
    )
    return {"transformer": transformer, "controlnet_strength": 1.0}


def _krea2_controlnet() -> dict[str, Any]:
    made = _krea2()
    made["transformer"].control_first = nn.Linear(64, 96)
    return made


_KREA2_PROMPTS = (embeddings(1, TOKENS, 2 * WIDTH), embeddings(1, TOKENS, 2 * WIDTH, seed=1))


def _ernie() -> dict[str, Any]:
    from mflux.models.ernie_image.model.ernie_transformer.transformer import ErnieTransformer

    transformer = ErnieTransformer(
        hidden_size=96, num_attention_heads=3, num_layers=2, ffn_hidden_size=128, in_channels=128, out_channels=128,
        text_in_dim=WIDTH, rope_axes_dim=[8, 12, 12],
    )  # fmt: skip
    return {"transformer": transformer}


def _anima() -> dict[str, Any]:
    from mflux.models.anima.model.anima_transformer.anima_transformer import AnimaTransformer

    transformer = AnimaTransformer(
        dim=128, num_blocks=2, num_heads=1, mlp_ratio=2.0, latent_channels=16, context_dim=1024, adaln_lora_dim=16
    )
    return {"transformer": transformer}


def _ideogram() -> dict[str, Any]:
    from mflux.models.ideogram4.model.ideogram4_transformer.config import Ideogram4Config
    from mflux.models.ideogram4.model.ideogram4_transformer.fp8_linear import Fp8Linear
    from mflux.models.ideogram4.model.ideogram4_transformer.transformer import Ideogram4Transformer

    config = Ideogram4Config(
        emb_dim=96, num_layers=2, num_heads=3, intermediate_size=128, adanln_dim=32, in_channels=128,
        llm_features_dim=WIDTH, mrope_section=(6, 5, 5),
    )  # fmt: skip
    made = {name: Ideogram4Transformer(config) for name in ("conditional_transformer", "unconditional_transformer")}
    for transformer in made.values():
        for _, module in transformer.named_modules():
            if isinstance(module, Fp8Linear):
                module.weight = mx.to_fp8(mx.random.normal(module.weight.shape) * 0.1)
    tokenizer = SimpleNamespace(tokenize_one=lambda prompt: embeddings(TOKENS))
    return {**made, "tokenizers": {"ideogram4": tokenizer}}


def _lens() -> dict[str, Any]:
    from mflux.models.lens.model.transformer.lens_transformer import LensTransformer

    transformer = LensTransformer(
        in_channels=128, out_channels=32, num_layers=2, attention_head_dim=32, num_attention_heads=3,
        enc_hidden_dim=WIDTH, num_selected_layers=2,
    )  # fmt: skip
    transformer.pos_embed = _qwen_rope()
    encoder = SimpleNamespace(encode=lambda prompt: embeddings(1, TOKENS, 2, WIDTH))
    return {"transformer": transformer, "text_encoder": encoder}


def _ming() -> dict[str, Any]:
    from mflux.models.ming_image.model.ming_transformer.ming_transformer import MingTransformer

    transformer = MingTransformer(
        in_channels=16, dim=96, n_layers=2, n_refiner_layers=1, n_heads=3, cap_feat_dim=WIDTH, axes_dims=(8, 12, 12),
        axes_lens=(256, 64, 64),
    )  # fmt: skip
    return {"transformer": transformer}


def _moss() -> dict[str, Any]:
    from mflux.models.moss_image.model.moss_image_transformer.moss_image_transformer import MOSSImageTransformer

    transformer = MOSSImageTransformer(
        dim=96, ffn_dim=128, num_heads=3, num_layers=3, text_dim=WIDTH, freq_dim=32, latent_channels=128
    )
    return {"transformer": transformer}


def _iris() -> dict[str, Any]:
    from mflux.models.iris.model.iris_transformer.iris_transformer import IrisTransformer

    transformer = IrisTransformer(
        hidden_size=96, depth=2, dual_depth=1, num_heads=3, num_kv_heads=3, patch_size=16, text_len=TOKENS, text_dim=WIDTH,
        text_num_layers=2, text_layer_num_heads=3, pixel_depth=1, pixel_hidden_size=8, pixel_attn_hidden_size=64,
        pixel_num_heads=2,
    )  # fmt: skip
    return {"transformer": transformer}


def _flux3() -> dict[str, Any]:
    from mflux.models.flux3.model.flux3_transformer.flux3_transformer import Flux3Transformer

    transformer = Flux3Transformer(
        in_channels=128, cond_in_channels=128, num_layers=1, num_single_layers=2, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=WIDTH, timestep_channels=32, axes_dims_rope=(8, 8, 8, 8),
        flow_map=False,
    )  # fmt: skip
    return {"transformer": transformer, "_noise_override": None, "vae": Vae(32, dimensions=4)}


def _replaced(name: str, **functions: Any) -> dict[str, Any]:
    """A patch: something with these functions in place of a class."""
    return {name: SimpleNamespace(**functions)}


_GUIDED = {"guidance": 3.0, "negative_prompt": "ugly"}


def _qwen21_prompt(prompt: str, **_: Any) -> tuple[mx.array, mx.array]:
    return embeddings(1, TOKENS, WIDTH, seed=len(prompt)), _mask()


def _ernie_prompts(prompts: list[str], **_: Any) -> tuple[mx.array, mx.array]:
    batch = [embeddings(1, TOKENS, WIDTH, seed=len(prompt)) for prompt in prompts]
    return mx.concatenate(batch), mx.array([TOKENS] * len(prompts))


def _control(photo: Path) -> Any:
    from mflux.models.z_image.variants.controlnet.control_types import ControlSpec, ControlType

    return ControlSpec(type=ControlType.canny, image_path=photo)


def _cases() -> Iterator[Family]:
    name = "qwen.variants.txt2img.qwen_image"
    patch = _replaced(f"{name}.QwenPromptEncoder", encode_prompt=lambda **_: _QWEN_PROMPTS)
    yield Family("qwen-image", f"{name}:QwenImage", "qwen_image", _qwen, patches=patch, calls=2)
    yield Family(
        "qwen-image:from-image", f"{name}:QwenImage", "qwen_image", _qwen, patches=patch, calls=2, late=2,
        arguments=lambda photo: {"image_path": photo, "image_strength": 0.25},
    )  # fmt: skip
    name = "qwen.variants.edit.qwen_image_edit"
    yield Family(
        "qwen-image:edit", f"{name}:QwenImageEdit", "qwen_image_edit", _qwen, calls=2,
        patches={f"{name}.QwenImageEdit._encode_prompts_with_images": lambda *_, **__: _QWEN_PROMPTS},
        arguments=lambda photo: {"image_paths": [str(photo)]},
    )  # fmt: skip

    name = "qwen21.variants.txt2img.qwen_image_21"
    patch = _replaced(f"{name}.Qwen21PromptEncoder", encode_prompt=_qwen21_prompt)
    name = f"{name}:QwenImage21"
    yield Family("qwen-image-2.1", name, "qwen_image_21", _qwen21, patches=patch)
    yield Family("qwen-image-2.1:guided", name, "qwen_image_21", _qwen21, lambda photo: _GUIDED, patch, calls=2)
    name = "qwen21.variants.edit.qwen_image_21_edit"
    patch = {f"{name}.QwenImage21Edit._encode_prompt": _qwen21_slots}
    yield Family(
        "qwen-image-2.1:edit", f"{name}:QwenImage21Edit", "qwen_image_21", _qwen21_edit, patches=patch, calls=2,
        arguments=lambda photo: {"image_paths": [photo], "output_resolution": SIDE, **_GUIDED},
    )  # fmt: skip
    name = "qwen21.variants.controlnet.qwen_image_21_controlnet"
    yield Family(
        "qwen-image-2.1-controlnet", f"{name}:QwenImage21Controlnet", "qwen_image_21_controlnet_union", _qwen21_controlnet,
        patches={f"{name}.QwenImage21Controlnet._encode_prompt": _qwen21_slots}, calls=2,
        arguments=lambda photo: {"controlnet_image_path": photo, **_GUIDED},
    )  # fmt: skip

    name = "z_image.variants.z_image"
    patch = _replaced(f"{name}.PromptEncoder", encode_prompt=_encoded(TOKENS, WIDTH))
    yield Family("z-image", f"{name}:ZImage", "z_image", _z_image, lambda photo: _GUIDED, patch)
    yield Family("z-image:turbo", f"{name}:ZImage", "z_image_turbo", _z_image, patches=patch)
    name = "z_image.variants.controlnet.z_image_turbo_controlnet"
    yield Family(
        "z-image-controlnet", f"{name}:ZImageTurboControlnet", "z_image_turbo_controlnet_union_2_1", _z_image_controlnet,
        patches={
            **_replaced(f"{name}.PromptEncoder", encode_prompt=_encoded(TOKENS, WIDTH)),
            f"{name}.ZImageControlnetUtil._preprocess": lambda image, type: image,
        },
        arguments=lambda photo: {"controls": [_control(photo)]},
    )  # fmt: skip

    for id, name, config in (
        ("fibo", "txt2img.fibo:FIBO", "fibo"),
        ("fibo:edit", "edit.fibo_edit:FIBOEdit", "fibo_edit"),
    ):
        name = f"fibo.variants.{name}"
        patch = _replaced(f"{name.split(':')[0]}.PromptEncoder", encode_prompt=_fibo_prompts)
        arguments = (
            (lambda photo: {"image_path": photo, "prompt": JSON_PROMPT}) if id == "fibo:edit" else (lambda photo: {})
        )
        yield Family(id, name, config, _fibo, arguments, patch, rules=_FIBO_RULES)

    core = "fibo2.variants.fibo2_core._Fibo2Core"
    patch = {
        f"{core}._encode_prompt": lambda *_: embeddings(1, 2, TOKENS, WIDTH),
        f"{core}._encode_prompts": lambda *_, **__: (embeddings(1, 2, TOKENS, WIDTH, seed=1), None),
    }
    name = "fibo2.variants.txt2img.fibo2:Fibo2"
    yield Family("fibo2", name, "fibo2", _fibo2, patches=patch, calls=2)
    yield Family("fibo2:cfg-end", name, "fibo2", _fibo2, lambda photo: {"cfg_end": 0.5}, patch, calls=2)
    name = "fibo2.variants.edit.fibo2_edit:Fibo2Edit"
    yield Family("fibo2:edit", name, "fibo2", _fibo2, lambda photo: {"image_paths": [photo]}, patch, calls=2)

    name = "krea2.variants.txt2img.krea2"
    patch = _replaced(f"{name}.Krea2PromptEncoder", encode_prompt_pair=lambda **_: _KREA2_PROMPTS)
    arguments = lambda photo: {"scheduler": "euler", "guidance": 3.0}  # noqa: E731
    yield Family("krea-2", f"{name}:Krea2", "krea2", _krea2, arguments, patch)
    name = "krea2.variants.controlnet.krea2_controlnet"
    patch = _replaced(f"{name}.Krea2PromptEncoder", encode_prompt_pair=lambda **_: _KREA2_PROMPTS)
    yield Family(
        "krea-2-controlnet", f"{name}:Krea2Controlnet", "krea2_controlnet_depth", _krea2_controlnet, patches=patch,
        arguments=lambda photo: {"scheduler": "euler", "guidance": 3.0, "depth_image_path": photo},
    )  # fmt: skip

    name = "ernie_image.variants.txt2img.ernie_image"
    patch = _replaced(f"{name}.ErniePromptEncoder", build_text_batch=_ernie_prompts)
    yield Family("ernie-image", f"{name}:ErnieImage", "ernie_image", _ernie, lambda photo: _GUIDED, patch)

    name = "anima.variants.txt2img.anima"
    patch = _replaced(f"{name}.AnimaPromptEncoder", encode=_encoded(1, TOKENS, 1024))
    arguments = lambda photo: {"scheduler": "euler", **_GUIDED}  # noqa: E731
    yield Family("anima", f"{name}:Anima", "anima_base", _anima, arguments, patch)

    name = "ideogram4.variants.txt2img.ideogram4"
    patch = {
        f"{name}.Ideogram4PromptEncoder.encode_prompt": lambda **_: embeddings(1, TOKENS + (SIDE // 16) ** 2, WIDTH),
        f"{name}.Ideogram4LatentCreator.MIN_DIMENSION": SIDE,
    }
    name = f"{name}:Ideogram4"
    yield Family(
        "ideogram-4", name, "ideogram4_fp8", _ideogram, lambda photo: {"warn_on_caption_issues": False}, patch, calls=2
    )
    yield Family(
        "ideogram-4:cfg-end", name, "ideogram4_fp8", _ideogram, patches=patch, calls=2,
        arguments=lambda photo: {"cfg_end": 0.5, "preset": "V4_TURBO_12", "warn_on_caption_issues": False},
    )  # fmt: skip

    yield Family("lens", "lens.variants.txt2img.lens_image:LensImage", "lens_turbo", _lens)

    name = "ming_image.variants.ming_image"
    patch = {f"{name}.MingImage.encode_prompt": lambda *_: (embeddings(TOKENS, WIDTH), embeddings(3, 96))}
    arguments = lambda photo: {"guidance": 3.0}  # noqa: E731
    yield Family("ming", f"{name}:MingImage", "ming_image_design", _ming, arguments, patch, calls=2, silent=1)

    name = "moss_image.variants.txt2img.moss_image"
    patch = {f"{name}.MOSSImage._encode_prompt": lambda model, prompt: embeddings(1, TOKENS, WIDTH, seed=len(prompt))}
    arguments = lambda photo: {"guidance": 3.0, "uncond_skip_layers": (1,)}  # noqa: E731
    yield Family("moss-image", f"{name}:MOSSImage", "moss_image_sft", _moss, arguments, patch, calls=2)

    name = "iris.variants.txt2img.iris"
    patch = {
        f"{name}.Iris._encode_prompt": lambda model, prompt: (
            embeddings(1, TOKENS, 2, WIDTH, seed=len(prompt)),
            _mask(),
        )
    }
    yield Family("iris", f"{name}:Iris", "iris_3b_base", _iris, patches=patch)

    ids = mx.stack([mx.zeros(TOKENS)] * 3 + [mx.arange(TOKENS)], axis=1)
    patch = {
        "flux3.variants.flux3_klein_core._Flux3KleinCore._encode_prompt": lambda model, prompt: (
            embeddings(1, TOKENS, WIDTH, seed=len(prompt)),
            ids,
        )
    }
    name, config = "flux3.variants.txt2img.flux3_klein:Flux3Klein", "flux3_image_klein_base"
    yield Family("flux3-klein", name, config, _flux3, patches=patch, calls=2)
    name = "flux3.variants.edit.flux3_klein_edit:Flux3KleinEdit"
    yield Family("flux3-klein:edit", name, config, _flux3, lambda photo: {"image_paths": [photo]}, patch, calls=2)


def exists(pipeline: str) -> bool:
    """Whether the installed mflux has the module of a pipeline, given as "module:Class"."""
    try:
        return importlib.util.find_spec(pipeline.partition(":")[0]) is not None
    except ModuleNotFoundError:
        return False


#: Those that the installed mflux has.
FAMILIES: list[Family] = [family for family in _cases() if exists(_MODELS + family.pipeline)]


def family(id: str) -> Family:
    """The family of this id; skips the test if the installed mflux does not have it."""
    found = next((family for family in FAMILIES if family.id == id), None)
    return found or pytest.skip(f"this mflux has no {id}")
