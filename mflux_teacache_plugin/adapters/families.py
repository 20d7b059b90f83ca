"""The families of mflux: where each makes its predictions, and where its signal, blocks and final norm are, if that is known.

Where nobody has tapped the transformer yet, a schedule works. mflux calls the transformer from plain Python once or twice a
step (with guidance on the prompt first and then on the negative prompt, so that the order tells the branches apart), or it
compiles a function of one step, made by `_predict`. On a skipped step neither is called. A skipped ControlNet step never
evaluates the ControlNet either: its samples are lazy, and only the blocks use them.

What pipelines keep between steps (Qwen-Image-2.1's keys and values of text and reference pictures) is filled on the first
step, which always computes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mflux_teacache_plugin.adapters.adapter import CLASSIFIER_FREE_GUIDANCE, Adapter
from mflux_teacache_plugin.caching.guidance import SecondCall
from mflux_teacache_plugin.caching.taps import TapPoints

_MODELS = "mflux.models"
_PIPELINES, _FLUX2, _QWEN, _QWEN21, _FIBO2, _FLUX3 = (
    f"{_MODELS}.{family}.variants" for family in ("flux", "flux2", "qwen", "qwen21", "fibo2", "flux3")
)


def _refuse_noise(model_config: Any | None, options: Mapping[str, Any]) -> str | None:
    """Krea 2 and Anima: every other sampler than euler, also their default, adds noise between the steps."""
    if options.get("scheduler", "euler") == "euler":
        return None
    return "its sampler er_sde adds noise between the steps; --scheduler euler adds none"


def _refuse_iris_turbo(model_config: Any | None, options: Mapping[str, Any]) -> str | None:
    if model_config is None or model_config.supports_guidance:
        return None
    return "Iris Turbo takes four large steps, whatever --steps says; iris-3b-base takes more"


def _flux3_sigmas(model: Any, config: Any, arguments: Mapping[str, Any]) -> Sequence[float]:
    from mflux.models.flux3.model.flux3_scheduler.flux3_flow_map_scheduler import Flux3FlowMapScheduler

    return Flux3FlowMapScheduler(config.num_inference_steps).timesteps.tolist()[:-1]


def _iris_sigmas(model: Any, config: Any, arguments: Mapping[str, Any]) -> Sequence[float]:
    from mflux.models.iris.model.iris_scheduler.iris_flow_dpm_solver import IrisFlowDPMSolver

    return IrisFlowDPMSolver(config.num_inference_steps, model.SHIFT).grid[:-1]


def _ideogram_scheduler() -> Any:
    from mflux.models.ideogram4.model.ideogram4_scheduler import Ideogram4Scheduler

    return Ideogram4Scheduler


def _ideogram_sigmas(model: Any, config: Any, arguments: Mapping[str, Any]) -> Sequence[float]:
    scheduler = _ideogram_scheduler()
    preset = scheduler.get_preset(arguments.get("preset"))
    signal, _ = scheduler.make_timesteps(
        num_steps=config.num_inference_steps, height=config.height, width=config.width, mu=preset.mu, std=preset.std
    )  # the share of signal, the last step first
    return [1.0 - float(share) for share in reversed(signal)]


#: Blocks for text and picture together; with them, blocks for one stream of both.
_ONE_LIST = TapPoints(
    blocks=("transformer_blocks",),
    signal="transformer_blocks.0.attn",
    signal_argument="hidden_states",
    final="norm_out",
)
_DOUBLE_AND_SINGLE = replace(_ONE_LIST, blocks=("transformer_blocks", "single_transformer_blocks"))

#: Blocks for one stream, as Z-Image and those that followed it have them.
_LAYERS = TapPoints(
    blocks=("layers",),
    signal="layers.0.attention",
    signal_argument="hidden_states",
    stream="x",
    final="all_final_layer.2-1",
)

# Every pipeline calls its `Transformer` directly, once a step, uncompiled.
FLUX1 = Adapter(
    id="flux1",
    pipelines=(
        f"{_PIPELINES}.txt2img.flux:Flux1",
        f"{_PIPELINES}.kontext.flux_kontext:Flux1Kontext",
        f"{_PIPELINES}.fill.flux_fill:Flux1Fill",
        f"{_PIPELINES}.depth.flux_depth:Flux1Depth",
        f"{_PIPELINES}.redux.flux_redux:Flux1Redux",
        f"{_PIPELINES}.controlnet.flux_controlnet:Flux1Controlnet",
        f"{_PIPELINES}.in_context.flux_in_context_dev:Flux1InContextDev",
        f"{_PIPELINES}.in_context.flux_in_context_fill:Flux1InContextFill",
    ),
    taps=_DOUBLE_AND_SINGLE,
    takes_all_steps=(f"{_PIPELINES}.kontext.flux_kontext:Flux1Kontext",),
)

# `_predict` makes a function of one step and compiles it, except on a plain or Pro M1 or M2. The edit pipeline's first step
# with a key-value cache fills that cache from the blocks; it is a first step, and first steps always compute.
KLEIN = Adapter(
    id="klein",
    pipelines=(f"{_FLUX2}.txt2img.flux2_klein:Flux2Klein", f"{_FLUX2}.edit.flux2_klein_edit:Flux2KleinEdit"),
    taps=_DOUBLE_AND_SINGLE,
    branches=CLASSIFIER_FREE_GUIDANCE,  # Python may ask a distilled model for it too
    second_call=SecondCall(),
    predict=("_predict", "_cached_predict"),  # the second for steps that read the key-value cache
)

# Klein's pipelines on a checkpoint that is not distilled, so that guidance takes two calls a step.
KLEIN_BASE = replace(KLEIN, id="klein-base")

# The loop calls the transformer twice a step, uncompiled, at any guidance. Guidance is not linear here (it keeps the length of
# the prompt's prediction), so a forecast is drawn for each branch.
QWEN = Adapter(
    id="qwen-image",
    pipelines=(f"{_QWEN}.txt2img.qwen_image:QwenImage", f"{_QWEN}.edit.qwen_image_edit:QwenImageEdit"),
    taps=replace(_ONE_LIST, signal_argument="img_modulated", stream="hidden_states"),
    branches=CLASSIFIER_FREE_GUIDANCE,
    second_call=SecondCall(idle=1.0),
)

# `_predict` makes a function of one step, with guidance of both calls, and compiles it. The turbo takes no guidance. The blocks
# see the picture's tokens and the caption's in one stream, the picture's first.
Z_IMAGE = Adapter(
    id="z-image",
    pipelines=(f"{_MODELS}.z_image.variants.z_image:ZImage",),
    taps=_LAYERS,
    branches=CLASSIFIER_FREE_GUIDANCE,
    second_call=SecondCall(),
    predict=("_predict",),
)

# With a ControlNet the loop calls the transformer.
Z_IMAGE_CONTROLNET = replace(
    Z_IMAGE,
    id="z-image-controlnet",
    pipelines=(f"{_MODELS}.z_image.variants.controlnet.z_image_turbo_controlnet:ZImageTurboControlnet",),
    second_call=None,
    predict=(),
)

# The loop calls the transformer once a step, uncompiled, with both guidance branches in one batch.
FIBO = Adapter(
    id="fibo",
    pipelines=(f"{_MODELS}.fibo.variants.txt2img.fibo:FIBO", f"{_MODELS}.fibo.variants.edit.fibo_edit:FIBOEdit"),
    taps=_DOUBLE_AND_SINGLE,
    second_call=SecondCall(batch=("encoder_hidden_states", "text_encoder_layers")),
)

# ERNIE-Image and its turbo: `_predict` makes a function of one step, with both guidance branches in one batch, and compiles it.
# The blocks see the picture's tokens and the prompt's in one stream, the picture's first; the final norm sees the picture's.
ERNIE = Adapter(
    id="ernie-image",
    pipelines=(f"{_MODELS}.ernie_image.variants.txt2img.ernie_image:ErnieImage",),
    taps=TapPoints(blocks=("layers",), signal="layers.0.self_attention", signal_argument="x", final="final_norm"),
    second_call=SecondCall(batch=("hidden_states", "timestep", "text_bth", "text_lens", "cos", "sin", "attn_mask")),
    predict=("_predict",),
)

# `_predict` makes a function of one step, with guidance of both calls, and compiles it. The blocks see the prompt's tokens and
# the picture's in one stream, and so does the final norm. With a ControlNet mflux makes that function before its loop begins,
# where no tap is set yet.
KREA2 = Adapter(
    id="krea-2",
    pipelines=(f"{_MODELS}.krea2.variants.txt2img.krea2:Krea2",),
    taps=TapPoints(blocks=("blocks",), signal="blocks.0.attn", signal_argument="x", final="last", text_first=True),
    branches=CLASSIFIER_FREE_GUIDANCE,
    second_call=SecondCall(),
    predict=("_predict",),
    refuses=_refuse_noise,
)

LENS = Adapter(
    id="lens",
    pipelines=(f"{_MODELS}.lens.variants.txt2img.lens_image:LensImage",),
    taps=_ONE_LIST,
    sigmas=lambda model, config, _: model._turbo_sigmas(config.image_seq_len, config.num_inference_steps)[:-1],
)

# The loop calls the transformer, once for the prompt and once without it.
MING = Adapter(
    id="ming",
    pipelines=(f"{_MODELS}.ming_image.variants.ming_image:MingImage",),
    taps=_LAYERS,
    branches=CLASSIFIER_FREE_GUIDANCE,
    second_call=SecondCall(),
    # at 0, on its last step, Ming does not call the transformer
    sigmas=lambda model, config, _: [each for each in model.sigmas(config.num_inference_steps).tolist() if each > 0],
)

# The call without the prompt leaves out some of the blocks.
MOSS = Adapter(
    id="moss-image",
    pipelines=(f"{_MODELS}.moss_image.variants.txt2img.moss_image:MOSSImage",),
    taps=TapPoints(blocks=("layers",), signal="layers.0.proj.q", signal_argument="x", final="final_norm_video"),
    branches=CLASSIFIER_FREE_GUIDANCE,
    second_call=SecondCall(),
)

_KREA2_CONTROLNET = Adapter(
    id="krea-2-controlnet",
    pipelines=(f"{_MODELS}.krea2.variants.controlnet.krea2_controlnet:Krea2Controlnet",),
    predict=("_predict",),
    on_class=True,
    refuses=_refuse_noise,
    second_call=SecondCall(),
)

#: Not tapped yet.
_UNTAPPED = (
    Adapter(
        id="qwen-image-2.1",
        pipelines=(
            f"{_QWEN21}.txt2img.qwen_image_21:QwenImage21",
            f"{_QWEN21}.edit.qwen_image_21_edit:QwenImage21Edit",
        ),
        second_call=SecondCall(),
    ),
    Adapter(
        id="qwen-image-2.1-controlnet",
        pipelines=(f"{_QWEN21}.controlnet.qwen_image_21_controlnet:QwenImage21Controlnet",),
        transformer="controlnet",  # it is given the transformer, and runs its blocks itself
        second_call=SecondCall(),
    ),
    Adapter(
        id="fibo2",
        pipelines=(f"{_FIBO2}.txt2img.fibo2:Fibo2", f"{_FIBO2}.edit.fibo2_edit:Fibo2Edit"),
        condition=2,  # once little noise is left, other embeddings come, which have seen the pictures of the caption's text
    ),
    _KREA2_CONTROLNET,
    replace(_KREA2_CONTROLNET, id="anima", pipelines=(f"{_MODELS}.anima.variants.txt2img.anima:Anima",)),
    Adapter(
        id="ideogram-4",
        pipelines=(f"{_MODELS}.ideogram4.variants.txt2img.ideogram4:Ideogram4",),
        transformer="conditional_transformer",
        predict=("_predict_conditional", "_predict_unconditional"),
        sigmas=_ideogram_sigmas,
        steps=lambda args: _ideogram_scheduler().get_preset(args.preset).num_steps,
    ),
    Adapter(
        id="iris",
        pipelines=(f"{_MODELS}.iris.variants.txt2img.iris:Iris",),
        sigmas=_iris_sigmas,
        refuses=_refuse_iris_turbo,
        second_call=SecondCall(batch=(0, 1, 2, 3)),
    ),
    Adapter(
        id="flux3-klein",
        pipelines=(f"{_FLUX3}.txt2img.flux3_klein:Flux3Klein", f"{_FLUX3}.edit.flux3_klein_edit:Flux3KleinEdit"),
        sigmas=_flux3_sigmas,
        second_call=SecondCall(idle=1.0),
    ),
)

_TAPPED = (FLUX1, KLEIN, KLEIN_BASE, QWEN, Z_IMAGE, Z_IMAGE_CONTROLNET, FIBO, ERNIE, KREA2, LENS, MING, MOSS)

#: What this package brings along.
BUILT_IN = (*_TAPPED, *_UNTAPPED)

_ATTENTION_MAPS = "its attention maps come from the blocks, which a skipped step does not run"

#: Pipelines that cannot be cached, and why.
REFUSED = {
    f"{_PIPELINES}.concept_attention.flux_concept:Flux1Concept": _ATTENTION_MAPS,
    f"{_PIPELINES}.concept_attention.flux_concept_from_image:Flux1ConceptFromImage": _ATTENTION_MAPS,
    f"{_MODELS}.seedvr2.variants.upscale.seedvr2:SeedVR2": "it takes a single step",
    f"{_MODELS}.boogu.variants.txt2img.boogu_image:BooguImage": (
        "it takes four large steps and adds fresh noise after each, so no step follows from the one before"
    ),
}
