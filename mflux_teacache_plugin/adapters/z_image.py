"""Z-Image: `_predict` makes a function of one step, with guidance of both calls, and compiles it. The turbo takes no guidance.

The blocks see the picture's tokens and the caption's in one stream, the picture's first. With a ControlNet the loop calls the
transformer; a skipped step never evaluates the ControlNet either.
"""

from dataclasses import replace

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.adapters.cfg import CLASSIFIER_FREE_GUIDANCE
from mflux_teacache_plugin.caching.taps import TapPoints

Z_IMAGE = Adapter(
    id="z-image",
    pipelines=("mflux.models.z_image.variants.z_image:ZImage",),
    taps=TapPoints(
        blocks=("layers",),
        stream="x",
        signal="layers.0.attention",
        signal_argument="hidden_states",
        final="all_final_layer.2-1",
    ),
    branches=CLASSIFIER_FREE_GUIDANCE,
    predict=("_predict",),
)

Z_IMAGE_CONTROLNET = replace(
    Z_IMAGE,
    id="z-image-controlnet",
    pipelines=("mflux.models.z_image.variants.controlnet.z_image_turbo_controlnet:ZImageTurboControlnet",),
    predict=(),
)
