"""FLUX.1: every pipeline calls its `Transformer` directly, once a step, uncompiled.

A skipped ControlNet step never evaluates the ControlNet either: its samples are lazy, and only the blocks use them.
"""

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.adapters.cfg import DISTILLED_GUIDANCE
from mflux_teacache_plugin.caching.taps import TapPoints

_VARIANTS = "mflux.models.flux.variants"

FLUX1 = Adapter(
    id="flux1",
    pipelines=(
        f"{_VARIANTS}.txt2img.flux:Flux1",
        f"{_VARIANTS}.kontext.flux_kontext:Flux1Kontext",
        f"{_VARIANTS}.fill.flux_fill:Flux1Fill",
        f"{_VARIANTS}.depth.flux_depth:Flux1Depth",
        f"{_VARIANTS}.redux.flux_redux:Flux1Redux",
        f"{_VARIANTS}.controlnet.flux_controlnet:Flux1Controlnet",
        f"{_VARIANTS}.in_context.flux_in_context_dev:Flux1InContextDev",
        f"{_VARIANTS}.in_context.flux_in_context_fill:Flux1InContextFill",
    ),
    taps=TapPoints(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        signal="transformer_blocks.0.attn",
        signal_argument="hidden_states",
        final="norm_out",
    ),
    branches=DISTILLED_GUIDANCE,
)

_ATTENTION_MAPS = "its attention maps come from the blocks, which a skipped step does not run"

REFUSED = {
    f"{_VARIANTS}.concept_attention.flux_concept:Flux1Concept": _ATTENTION_MAPS,
    f"{_VARIANTS}.concept_attention.flux_concept_from_image:Flux1ConceptFromImage": _ATTENTION_MAPS,
}
