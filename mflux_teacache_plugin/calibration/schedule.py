"""The noise levels of a run that recorded none, from mflux's own schedulers."""

import numpy as np

from mflux_teacache_plugin.calibration.traces import TraceError

#: Adapter to the scheduler that mflux's command of that family asks for; the others ask for "linear".
_SCHEDULERS = {
    "klein": "flow_match_euler_discrete",
    "klein-base": "flow_match_euler_discrete",
    "z-image": "flow_match_euler_discrete",
}


def sigmas(model: str, adapter: str, steps: int, width: int, height: int) -> np.ndarray:
    """(steps,): σ at which each step of mflux's `model` is computed, as the installed mflux schedules it.

    Raises:
        TraceError: mflux does not know the model.
    """
    from mflux.models.common.config.config import Config
    from mflux.models.common.config.model_config import AVAILABLE_MODELS, ModelConfig

    named = [config for config in AVAILABLE_MODELS.values() if model in (config.model_name, *config.aliases)]
    try:
        model_config = named[0] if named else ModelConfig.from_name(model)
    except ValueError as error:
        hint = "record with mflux-teacache calibrate, which writes sigma into the traces"
        raise TraceError(
            f"the traces hold no sigma, and mflux knows no {model}", cause=str(error), hint=hint
        ) from error
    scheduler = _SCHEDULERS.get(adapter, "linear")
    config = Config(model_config, num_inference_steps=steps, width=width, height=height, scheduler=scheduler)
    return np.array(config.scheduler.sigmas, dtype=float)[:steps]
