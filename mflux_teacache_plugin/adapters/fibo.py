"""FIBO and its edit: the loop calls the transformer once a step, uncompiled, with both guidance branches in one batch."""

from mflux_teacache_plugin.adapters.adapter import Adapter
from mflux_teacache_plugin.caching.taps import TapPoints

FIBO = Adapter(
    id="fibo",
    pipelines=(
        "mflux.models.fibo.variants.txt2img.fibo:FIBO",
        "mflux.models.fibo.variants.edit.fibo_edit:FIBOEdit",
    ),
    taps=TapPoints(
        blocks=("transformer_blocks", "single_transformer_blocks"),
        signal="transformer_blocks.0.attn",
        signal_argument="hidden_states",
        final="norm_out",
    ),
)
