"""The families for which nobody has tapped the transformer yet: where a step's prediction is made, and nothing else.

That is enough for a schedule. mflux calls the transformer from plain Python once or twice a step (with guidance on the
prompt first and then on the negative prompt, so that the order tells the branches apart), or it compiles a function of one
step, made by `_predict`. Either stays as it is; on a skipped step it is not called.

What pipelines keep between steps (Qwen-Image-2.1's keys and values of text and reference pictures) is filled on the first
step, which always computes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.adapters.tapped import refuse_noise
from mflux_teacache_plugin.caching.guidance import SecondCall

_MODELS = "mflux.models"
_QWEN, _FIBO2, _FLUX3 = (f"{_MODELS}.{family}.variants" for family in ("qwen21", "fibo2", "flux3"))


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


UNTAPPED = (
    Adapter(
        id="qwen-image-2.1",
        pipelines=(f"{_QWEN}.txt2img.qwen_image_21:QwenImage21", f"{_QWEN}.edit.qwen_image_21_edit:QwenImage21Edit"),
        second_call=SecondCall(),
    ),
    Adapter(
        id="qwen-image-2.1-controlnet",
        pipelines=(f"{_QWEN}.controlnet.qwen_image_21_controlnet:QwenImage21Controlnet",),
        transformer="controlnet",  # it is given the transformer, and runs its blocks itself
        second_call=SecondCall(),
    ),
    Adapter(
        id="fibo2",
        pipelines=(f"{_FIBO2}.txt2img.fibo2:Fibo2", f"{_FIBO2}.edit.fibo2_edit:Fibo2Edit"),
        condition=2,  # once little noise is left, other embeddings come, which have seen the pictures of the caption's text
    ),
    Adapter(
        id="krea-2-controlnet",
        pipelines=(f"{_MODELS}.krea2.variants.controlnet.krea2_controlnet:Krea2Controlnet",),
        predict=("_predict",),
        on_class=True,
        refuses=refuse_noise,
        second_call=SecondCall(),
    ),
    Adapter(
        id="anima",
        pipelines=(f"{_MODELS}.anima.variants.txt2img.anima:Anima",),
        predict=("_predict",),
        on_class=True,
        refuses=refuse_noise,
        second_call=SecondCall(),
    ),
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

REFUSED = {
    f"{_MODELS}.seedvr2.variants.upscale.seedvr2:SeedVR2": "it takes a single step",
    f"{_MODELS}.boogu.variants.txt2img.boogu_image:BooguImage": (
        "it takes four large steps and adds fresh noise after each, so no step follows from the one before"
    ),
}
