"""An example: a method, a family and an option, each as a plugin brings it.

`--teacache every:3` computes every third step. Lens is served by this adapter in place of the built-in one. `--stopwatch 3` prints the
three slowest steps of each picture.
"""

import sys
import time
from argparse import ArgumentTypeError
from dataclasses import dataclass
from typing import ClassVar

from mflux_teacache_plugin.api import Adapter, Change, Gate, Method, Setup, TapPoints, Verdict, hookimpl

# ---- a method --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Every(Method):
    """Compute every `count`-th step, and the last one."""

    count: int = 2
    usual_forecast: ClassVar[str] = "linear"
    needs_taps: ClassVar[bool] = False

    @property
    def setting(self) -> str:
        return f"every:{self.count}"

    def gate(self, setup: Setup) -> Gate:
        return EveryGate(self.count, setup.facts.steps - 1)


class EveryGate:
    def __init__(self, count: int, last: int) -> None:
        self.count, self.last = count, last

    def __call__(self, step: int, change: Change) -> Verdict:
        computed = step % self.count == 0 or step == self.last
        return Verdict(skip=not computed, reason="its turn" if computed else "not its turn")

    def reset(self) -> None:
        """A step was computed without asking; this gate counts nothing, so there is nothing to reset."""


def parse(setting: str) -> Every:
    """`3`, the text after `every:`."""
    if not setting.isdecimal() or int(setting) < 1:
        raise ArgumentTypeError(f"every: '{setting}' is not a number of steps; try every:2")
    return Every(count=int(setting))


@hookimpl
def mflux_methods():
    return {"every": parse}


# ---- a family --------------------------------------------------------------------------------------------------------


def sigmas(model, config, arguments):
    """Lens does not use mflux's scheduler: it makes its own sigmas. The last one, 0, belongs to no step."""
    return model._turbo_sigmas(config.image_seq_len, config.num_inference_steps)[:-1]


LENS = Adapter(
    id="lens",  # the id of a built-in adapter: this one replaces it
    pipelines=("mflux.models.lens.variants.txt2img.lens_image:LensImage",),
    taps=TapPoints(
        blocks=("transformer_blocks",),
        signal="transformer_blocks.0.attn",
        signal_argument="hidden_states",
        final="norm_out",
    ),
    sigmas=sigmas,
)


@hookimpl
def mflux_adapters():
    return [LENS]


# ---- an option -------------------------------------------------------------------------------------------------------


class Stopwatch:
    def __init__(self):
        self.wanted = None
        self.seconds = {}
        self.last = 0.0

    @hookimpl
    def mflux_add_options(self, parser):
        group = parser.add_argument_group("Stopwatch")
        group.add_argument("--stopwatch", type=int, metavar="N", help="Print the N slowest steps of each picture.")

    @hookimpl
    def mflux_options_parsed(self, parser, args):
        if args.stopwatch is not None and args.stopwatch < 1:
            parser.error("argument --stopwatch: N must be at least 1")
        self.wanted = args.stopwatch

    @hookimpl
    def mflux_generation_begin(self):
        self.seconds = {}
        self.last = time.perf_counter()

    @hookimpl
    def mflux_step_end(self, t):
        now = time.perf_counter()
        self.seconds[t], self.last = now - self.last, now

    @hookimpl
    def mflux_generation_end(self, image):
        if self.wanted is None or image is None:
            return
        slowest = sorted(self.seconds, key=self.seconds.get, reverse=True)[: self.wanted]
        for t in slowest:
            print(f"stopwatch: step {t} took {self.seconds[t]:.2f} s", file=sys.stderr)
        image.generation_parameters = {**image.generation_parameters, "stopwatch_slowest": slowest[0]}


stopwatch = Stopwatch()
