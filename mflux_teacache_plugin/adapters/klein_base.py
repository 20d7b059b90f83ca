"""FLUX.2 Klein base: Klein's pipelines on a checkpoint that is not distilled, so that guidance takes two calls a step."""

from dataclasses import replace

from mflux_teacache_plugin.adapters.klein import KLEIN

KLEIN_BASE = replace(KLEIN, id="klein-base")
