"""Coefficient files: their schema, where they are looked for, and which one is for a loaded model. No mflux import."""

from mflux_teacache_plugin.variants.catalog import Catalog, Entry
from mflux_teacache_plugin.variants.variant import Guard, Profile, Provenance, StepList, Variant, read_variant

__all__ = ["Catalog", "Entry", "Guard", "Profile", "Provenance", "StepList", "Variant", "read_variant"]
