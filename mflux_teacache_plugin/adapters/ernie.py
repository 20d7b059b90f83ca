"""ERNIE-Image and its turbo: `_predict` makes a function of one step, with both guidance branches in one batch, and compiles it.

The blocks see the picture's tokens and the prompt's in one stream, the picture's first; the final norm sees the picture's.
"""

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.caching.taps import TapPoints

ERNIE = Adapter(
    id="ernie-image",
    pipelines=("mflux.models.ernie_image.variants.txt2img.ernie_image:ErnieImage",),
    taps=TapPoints(
        blocks=("layers",),
        signal="layers.0.self_attention",
        signal_argument="x",
        final="final_norm",
    ),
    predict=("_predict",),
)
