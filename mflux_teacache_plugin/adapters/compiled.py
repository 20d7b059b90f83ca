"""mflux compiles a whole step into one function, in which no gate can live. Ask it for the uncompiled one instead."""

from collections.abc import Callable
from types import FunctionType
from typing import Any


def uncompiled(build: Callable[..., Any], *args: Any) -> tuple[Callable[..., Any], bool]:
    """The step function that `build(*args)` makes, uncompiled, and whether mflux would have compiled it.

    mflux leaves it uncompiled on a plain or Pro M1 or M2, so for the moment of building this machine is one.
    """
    built = build(*args)
    if type(built) is FunctionType:  # isinstance is no use: a compiled function claims its original's class
        return built, False
    from mflux.utils.apple_silicon import AppleSiliconUtil

    stock = AppleSiliconUtil.__dict__["is_m1_or_m2"]
    AppleSiliconUtil.is_m1_or_m2 = staticmethod(lambda: True)
    try:
        return build(*args), True
    finally:
        AppleSiliconUtil.is_m1_or_m2 = stock
