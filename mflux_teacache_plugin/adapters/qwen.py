"""Qwen-Image and its edit: the loop calls the transformer twice a step, uncompiled, at any guidance.

Guidance is not linear here (it keeps the length of the prompt's prediction), so a forecast is drawn for each branch.
"""

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.adapters.cfg import CLASSIFIER_FREE_GUIDANCE
from mflux_teacache_plugin.caching.taps import TapPoints

QWEN = Adapter(
    id="qwen-image",
    pipelines=(
        "mflux.models.qwen.variants.txt2img.qwen_image:QwenImage",
        "mflux.models.qwen.variants.edit.qwen_image_edit:QwenImageEdit",
    ),
    taps=TapPoints(
        blocks=("transformer_blocks",),
        stream="hidden_states",
        signal="transformer_blocks.0.attn",
        signal_argument="img_modulated",
        final="norm_out",
    ),
    branches=CLASSIFIER_FREE_GUIDANCE,
)
