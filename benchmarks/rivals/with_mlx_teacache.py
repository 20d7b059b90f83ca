"""mlx-teacache 0.14.1 on the demo model, for benchmarks/frontier.py, which is given the folder of the unpacked wheel.

It knows its models by mflux's aliases, so it is told that the demo model is FLUX.2 Klein base 4B, which is the same
pipeline and the same transformer but for the sizes. It is given the demo model's own polynomial, which was fitted to the
rule that both share. Its last verified mflux is 0.23; on a newer one it warns and runs.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ALIAS = "flux2-klein-base-4b"


@contextmanager
def applied(model: Any, threshold: float, polynomial: tuple[float, ...]) -> Iterator[Any]:
    """mlx-teacache's handle on the model; within, pictures are made with it. Its package must be importable."""
    from mlx_teacache import apply_teacache

    aliases = model.model_config.aliases
    model.model_config.aliases = [*aliases, ALIAS]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was not verified on this mflux
            handle = apply_teacache(model, rel_l1_thresh=threshold, coefficients=list(polynomial))
        with handle:
            yield handle
    finally:
        model.model_config.aliases = aliases


def computed(handle: Any) -> int:
    """Steps that the last picture was computed in."""
    return sum(step.decision != "skipped" for step in handle.stats.last_generation.decisions)
