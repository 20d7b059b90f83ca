"""Coefficient files: their schema, where they are looked for, and which one is for a loaded model. No mflux import."""

from mflux_teacache_plugin.variants.catalog import Catalog, Entry, ModelIdentity, beside_model, load_catalog
from mflux_teacache_plugin.variants.variant import Guard, Profile, Provenance, StepList, Variant, read_variant

__all__ = [
    "Catalog",
    "Entry",
    "Guard",
    "ModelIdentity",
    "Profile",
    "Provenance",
    "StepList",
    "Variant",
    "beside_model",
    "load_catalog",
    "read_variant",
]
