"""See inside a transformer without copying its forward.

Two places are tapped, by a layer before the module that sits there: the module whose input is the *signal*
(the first block's modulated input) and the *final norm*. Running the same forward with its block lists emptied gives the
final norm's input as it would be without the blocks, `h_in`; the blocks' whole effect is `h_out - h_in`, the residual.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
from mlx import nn

from mflux_teacache_plugin.host.layers import stand_before

Forward = Callable[..., mx.array]


@dataclass(frozen=True, kw_only=True)
class TapPoints:
    """Where a transformer is tapped; names and dotted paths are relative to it (`transformer_blocks.0.attn`)."""

    blocks: tuple[str, ...]  #: the lists of blocks, the expensive part
    signal: str  #: the module whose input is the first block's modulated input
    signal_argument: str  #: that input's keyword; it is taken from the first position if passed without
    final: str  #: the final norm; its first argument is tapped
    stream: str | None = None  #: the keyword under which a block takes the image's tokens; None for `signal_argument`
    text_first: bool = False  #: the signal has the prompt's tokens before the picture's


#: One pass of a forward: its output, then per guidance branch the signal, (batch, tokens, width), and the final norm's
#: input, (batch, image tokens, width). There are no signals without blocks.
Pass = tuple[mx.array, list[mx.array], list[mx.array]]


def module_at(root: Any, path: str) -> Any:
    """The module at a dotted path; a number indexes a list, and a dict has keys. Raises AttributeError or IndexError."""
    for part in path.split("."):
        if part.isdigit():
            root = root[int(part)]
        elif isinstance(root, dict) and part in root:  # a module is a dict too
            root = root[part]
        else:
            root = getattr(root, part)
    return root


class Taps:
    """The taps on one transformer, from construction until `remove()`."""

    def __init__(self, transformer: nn.Module, points: TapPoints) -> None:
        self.running = False  #: inside `full` or `without_blocks`; a call from outside passes the taps untouched
        self._transformer = transformer
        self._points = points
        self._signals: list[mx.array] = []
        self._finals: list[mx.array] = []
        self._residuals: Sequence[mx.array] | None = None
        for name in points.blocks:  # a wrong name must fail here, not in the middle of a generation
            getattr(transformer, name)
        signal, final = module_at(transformer, points.signal), module_at(transformer, points.final)
        self._undo: list[Callable[[], None]] = []
        try:
            self._undo.append(stand_before(signal, "__call__", self._on_signal))
            self._undo.append(stand_before(final, "__call__", self._on_final))
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Leave the modules as they were."""
        while self._undo:
            self._undo.pop()()

    def full(self, forward: Forward, *args: Any, **kwargs: Any) -> Pass:
        """Run `forward`, which calls the transformer once per guidance branch, with its blocks."""
        return self._run(None, forward, args, kwargs)

    def without_blocks(self, forward: Forward, residuals: Sequence[mx.array] | None, *args: Any, **kwargs: Any) -> Pass:
        """Run `forward` with empty block lists; `residuals`, one per branch, are added at the final norm."""
        lists = {name: getattr(self._transformer, name) for name in self._points.blocks}
        try:
            for name in lists:
                setattr(self._transformer, name, [])
            return self._run(residuals, forward, args, kwargs)
        finally:
            for name, blocks in lists.items():
                setattr(self._transformer, name, blocks)

    def _run(self, residuals: Sequence[mx.array] | None, forward: Forward, args: tuple, kwargs: dict) -> Pass:
        self.running, self._signals, self._finals, self._residuals = True, [], [], residuals
        try:
            return forward(*args, **kwargs), self._signals, self._finals
        finally:
            self.running, self._signals, self._finals, self._residuals = False, [], [], None

    def _on_signal(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.running:
            name = self._points.signal_argument
            signal = kwargs[name] if name in kwargs else args[0]
            # turned round, the picture's come first; that they run backwards changes no difference and no filter
            self._signals.append(signal[:, ::-1] if self._points.text_first else signal)
        return inner(*args, **kwargs)

    def _on_final(self, inner: Callable[..., Any], hidden: mx.array, *args: Any, **kwargs: Any) -> Any:
        if self.running:
            if self._residuals is not None:
                hidden = hidden + self._residuals[len(self._finals)]
            self._finals.append(hidden)
        return inner(hidden, *args, **kwargs)


class TappedForward:
    """A forward as the step cache runs it: plain, with its blocks, or without them; compiled where mflux compiles it.

    Compiling keeps the taps live: they are outputs of the compiled function, so the gate decides outside of it.
    """

    def __init__(self, taps: Taps, forward: Forward, compiled: bool = False) -> None:
        wrap: Callable[[Any], Any] = mx.compile if compiled else lambda function: function
        self.plain: Forward = wrap(forward)
        self.full: Callable[..., Pass] = wrap(partial(taps.full, forward))
        self.without_blocks: Callable[..., Pass] = wrap(partial(taps.without_blocks, forward))
