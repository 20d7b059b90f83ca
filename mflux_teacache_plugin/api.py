"""All that the author of a plugin, a method, a family or a variant imports; nothing else of this package is meant for them."""

from mflux_teacache_plugin.adapters.adapter import CLASSIFIER_FREE_GUIDANCE, DISTILLED_GUIDANCE, Adapter
from mflux_teacache_plugin.caching.block_cache import BlockCache
from mflux_teacache_plugin.caching.gate import Change, Facts, Gate, Setup, Verdict
from mflux_teacache_plugin.caching.guidance import SecondCall
from mflux_teacache_plugin.caching.stats import Generation
from mflux_teacache_plugin.caching.step_cache import Cache, Calls, PredictionCache, StepCache
from mflux_teacache_plugin.caching.taps import TapPoints
from mflux_teacache_plugin.errors import (
    AlreadyAppliedError,
    ConflictError,
    SettingsError,
    TeaCacheError,
    UnsupportedModelError,
    VariantFileError,
)
from mflux_teacache_plugin.host.specs import hookimpl
from mflux_teacache_plugin.methods.method import Method, Parser
from mflux_teacache_plugin.variants import Guard, Profile, Provenance, StepList, Variant, read_variant

__all__ = ["hookimpl"]  # for a plugin of mflux's commands
__all__ += ["Method", "Parser", "Setup", "Gate", "Change", "Verdict", "Facts", "Generation"]  # for a method
__all__ += ["Cache", "PredictionCache", "StepCache", "BlockCache", "Calls"]  # for a method that keeps its own way
__all__ += ["Adapter", "TapPoints", "SecondCall", "DISTILLED_GUIDANCE", "CLASSIFIER_FREE_GUIDANCE"]  # for a family
__all__ += ["Variant", "Guard", "Profile", "Provenance", "StepList", "read_variant"]  # for a variant
__all__ += ["TeaCacheError", "AlreadyAppliedError", "ConflictError", "SettingsError"]
__all__ += ["UnsupportedModelError", "VariantFileError"]
