"""A pipeline without mflux: its loop, its callbacks and one small transformer, for tests that take milliseconds."""

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx import nn

from mflux_teacache_plugin.adapters import Adapter
from mflux_teacache_plugin.caching.taps import TapPoints
from mflux_teacache_plugin.choose import Choice
from mflux_teacache_plugin.methods.method import Method

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.Linear(WIDTH, WIDTH)

    def __call__(self, hidden: mx.array) -> mx.array:
        return hidden + self.attn(hidden * 2)


class Transformer(nn.Module):
    """Counts its calls, and those of its blocks by their place in the list."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = [Block() for _ in range(blocks)]
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, 4)

    def __call__(self, x: mx.array) -> mx.array:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self.out(self.norm(hidden))


class Callbacks:
    """As mflux's registry has them."""

    def __init__(self) -> None:
        self.before_loop: list[Any] = []
        self.in_loop: list[Any] = []
        self.after_loop: list[Any] = []
        self.interrupt: list[Any] = []

    def register(self, callback: Any) -> None:
        for name in ("before_loop", "in_loop", "after_loop", "interrupt"):
            if hasattr(callback, f"call_{name}"):
                getattr(self, name).append(callback)


class Bar:
    def __init__(self) -> None:
        self.shown: list[str] = []

    def set_postfix(self, refresh: bool, skipped: str) -> None:
        self.shown.append(skipped)


class Pipeline(nn.Module):
    """`branches` calls of the transformer in each of the steps, in a loop that tells its callbacks."""

    def __init__(self, branches: int = 1) -> None:
        super().__init__()
        mx.random.seed(0)
        self.transformer = Transformer()
        self.callbacks = Callbacks()
        self.model_config = SimpleNamespace(model_name="toy", base_model=None, aliases=["toy"])
        self.branches = branches
        self.bar = Bar()
        mx.eval(self.parameters())

    def predict(self, latents: mx.array) -> mx.array:
        outputs = [self.transformer(latents + branch) for branch in range(self.branches)]
        return sum(outputs[1:], outputs[0])

    def generate_image(
        self,
        seed: int,
        prompt: str = "",
        num_inference_steps: int = 6,
        init_time_step: int = 0,
        height: int = 64,
        width: int = 96,
        scheduler: str = "linear",
    ) -> Any:
        sigmas = mx.array([1 - step / num_inference_steps for step in range(num_inference_steps + 1)])
        config = SimpleNamespace(
            num_inference_steps=num_inference_steps,
            init_time_step=init_time_step,
            height=height,
            width=width,
            scheduler=SimpleNamespace(sigmas=sigmas),
        )
        self.bar = Bar()
        latents = mx.random.normal((1, height * width // 256, 4), key=mx.random.key(seed))
        for each in self.callbacks.before_loop:
            each.call_before_loop(seed=seed, prompt=prompt, config=config, latents=latents)
        for t in range(init_time_step, num_inference_steps):
            try:
                latents = latents - self.predict(latents) / num_inference_steps
                for each in self.callbacks.in_loop:
                    each.call_in_loop(t=t, time_steps=self.bar, latents=latents)
                mx.eval(latents)
            except KeyboardInterrupt:
                for each in self.callbacks.interrupt:
                    each.call_interrupt(t=t)
                raise RuntimeError("stopped") from None
        for each in self.callbacks.after_loop:
            each.call_after_loop(latents=latents)
        return SimpleNamespace(latents=latents, generation_parameters={"seed": seed})


class Compiled(Pipeline):
    """As Klein: `_predict` makes the function of a step, which is compiled unless this machine is said to be an M1."""

    def predict(self, latents: mx.array) -> mx.array:
        return self._predict(self.transformer)(latents)

    def _predict(self, transformer: Transformer) -> Any:
        from mflux.utils.apple_silicon import AppleSiliconUtil

        def step(latents: mx.array) -> mx.array:
            outputs = [transformer(latents + branch) for branch in range(self.branches)]
            return sum(outputs[1:], outputs[0])

        return step if AppleSiliconUtil.is_m1_or_m2() else Shut(step)


class Shut:
    """Stands in for what `mx.compile` makes: no plain function, and nothing may be read inside."""

    def __init__(self, step: Any) -> None:
        self.step = step

    def __call__(self, *args: Any) -> Any:
        return self.step(*args)


class OnClass(Pipeline):
    """As Anima: the function of a step is made before the loop, by a static method looked up on the class."""

    def generate_image(self, seed: int, **options: Any) -> Any:
        self._step = type(self)._predict(self.transformer)
        return super().generate_image(seed, **options)

    def predict(self, latents: mx.array) -> mx.array:
        return self._step(latents)

    @staticmethod
    def _predict(transformer: Transformer) -> Any:
        return lambda latents: transformer(latents)


TAPS = TapPoints(blocks=("blocks",), signal="blocks.0.attn", signal_argument="x", final="norm", stream="hidden")


def an_adapter(pipeline: type = Pipeline, **more: Any) -> Adapter:
    name = f"{pipeline.__module__}:{pipeline.__qualname__}"
    return Adapter(**{"id": "toy", "pipelines": (name,), "taps": TAPS, "branches": 2, **more})


def a_choice(method: Method, adapter: Adapter | None = None) -> Choice:
    return Choice(adapter or an_adapter(), method, None)
