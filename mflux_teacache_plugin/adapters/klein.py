"""FLUX.2 Klein, distilled: few steps, no guidance, so there is seldom anything to skip.

`_predict` makes a function of one step and compiles it, except on a plain or Pro M1 or M2. The edit pipeline's first step with a
key-value cache fills that cache from the blocks; it is a first step, and first steps always compute.
"""

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.adapters.cfg import CLASSIFIER_FREE_GUIDANCE
from mflux_teacache_plugin.caching.taps import TapPoints

KLEIN = Adapter(
    id="klein",
    pipelines=(
        "mflux.models.flux2.variants.txt2img.flux2_klein:Flux2Klein",
        "mflux.models.flux2.variants.edit.flux2_klein_edit:Flux2KleinEdit",
    ),
    taps=TapPoints(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        signal="transformer_blocks.0.attn",
        signal_argument="hidden_states",
        final="norm_out",
    ),
    branches=CLASSIFIER_FREE_GUIDANCE,  # Python may ask a distilled model for it too
    predict=("_predict", "_cached_predict"),  # the second for steps that read the key-value cache
)
