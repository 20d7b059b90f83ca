"""Stand before the calls of one object, and leave again, in any order and however many stand there.

A module's calls, a pipeline's method: only the object's class changes, to a subclass that is made once for each class and
set of names. Parameters, quantization, LoRA, saving and isinstance stay as they are, and nothing that stands there keeps
the object alive. A method that hides behind an attribute of the object, put there by somebody else, is wrapped in place.
"""

import weakref
from collections.abc import Callable
from functools import cache, partial, update_wrapper, wraps
from typing import Any

#: `layer(inner, *args, **kwargs)` answers a call; `inner` is what would answer it without the layer.
Layer = Callable[..., Any]

_LAYERS = "_mflux_layers"  # on an object: class → name → its layers, the newest last


def stand_before(target: Any, name: str, layer: Layer) -> Callable[[], None]:
    """Let `layer(inner, *args, **kwargs)` answer `target.name(...)` from now on; returns what ends it.

    `"__call__"` stands before calls of the object itself. AttributeError if there is no such method. `target` may also be a
    class, for a static method that is looked up on the class.
    """
    if isinstance(target, type):
        return _in_place(next(each for each in target.__mro__ if name in vars(each)), name, layer)
    if name in vars(target):
        return _in_place(target, name, layer)
    getattr(type(target), name)
    base: type = vars(type(target)).get("_mflux_base", type(target))
    named = vars(target).setdefault(_LAYERS, {}).setdefault(base, {})
    named.setdefault(name, []).append(layer)
    object.__setattr__(target, "__class__", _layered(base, frozenset(named)))
    return partial(_leave, weakref.ref(target), base, name, layer)


def _leave(reference: Callable[[], Any], base: type, name: str, layer: Layer) -> None:
    target = reference()
    named = {} if target is None else vars(target).get(_LAYERS, {}).get(base, {})
    if not any(each is layer for each in named.get(name, ())):
        return
    named[name][:] = [each for each in named[name] if each is not layer]
    if named[name]:
        return
    del named[name]
    if vars(type(target)).get("_mflux_base") is base:  # else somebody stands before us; without layers we only pass on
        object.__setattr__(target, "__class__", _layered(base, frozenset(named)) if named else base)
    if not named:
        del vars(target)[_LAYERS][base]
    if not vars(target)[_LAYERS]:
        del vars(target)[_LAYERS]


@cache
def _layered(base: type, names: frozenset[str]) -> type:
    """A subclass of `base` whose methods of these names ask the layers of their object first."""
    body: dict[str, Any] = {"__module__": base.__module__, "__qualname__": base.__qualname__, "_mflux_base": base}
    body.update((name, _method(base, name)) for name in names)
    return type(base.__name__, (base,), body)


def _method(base: type, name: str) -> Callable[..., Any]:
    @wraps(getattr(base, name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        layered = next(cls for cls in type(self).__mro__ if vars(cls).get("_mflux_base") is base)
        inner = getattr(super(layered, self), name)
        return _chain(inner, vars(self).get(_LAYERS, {}).get(base, {}).get(name, ()))(*args, **kwargs)

    return method


def _chain(inner: Callable[..., Any], layers: Any) -> Callable[..., Any]:
    for layer in tuple(layers):
        inner = partial(layer, inner)
    return inner


class _Place:
    """A function that asks its layers first; `found` is what stood there, of a class the static method."""

    def __init__(self, stock: Callable[..., Any], found: Any) -> None:
        update_wrapper(self, stock)
        self.stock, self.found = stock, found
        self.layers: list[Layer] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _chain(self.stock, self.layers)(*args, **kwargs)


def _in_place(owner: Any, name: str, layer: Layer) -> Callable[[], None]:
    """For an attribute of an object's own, or a static method of a class's own."""
    there, function = vars(owner)[name], getattr(owner, name)
    place = function if isinstance(function, _Place) else _Place(function, there)
    place.layers.append(layer)
    put = type.__setattr__ if isinstance(owner, type) else object.__setattr__
    if place is not function:
        put(owner, name, staticmethod(place) if isinstance(owner, type) else place)
    reference = weakref.ref(owner)

    def leave() -> None:
        place.layers[:] = [each for each in place.layers if each is not layer]
        owner = reference()
        if not place.layers and owner is not None and getattr(owner, name, None) is place:
            put(owner, name, place.found)

    return leave
