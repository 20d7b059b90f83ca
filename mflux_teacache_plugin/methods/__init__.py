"""Methods by name: one text names a method with its setting, on the command line, in the environment, in a coefficient file
and in a picture's metadata.

    0.2                     TeaCache, with this threshold
    1.5x                    a schedule of as many steps as give this speed-up
    dualcache:aggressive    DualCache; also dualcache:F=8,B=0,rdt=0.08
    seacache:0.3            SeaCache; also seacache:0.25,diffusers
    easycache:0.2           EasyCache; also easycache:0.2,ret_steps=10
    magcache:0.06           MagCache; also magcache:0.24,K=5,retention=0.1
    90s                     as many steps as the loop computes in this time
    steps:0-9,12,17,24      just these steps
    cuts                    no step is skipped, only what guidance can do without is left out
    2x+reuse                any of them, with another forecast: reuse, linear or quadratic
    2x@0.1-0.9              any of them, with everything computed before and after these shares of the run
    2x,cfg_end=0.6          any of them, with guidance on the first 0.6 of the steps

The last three may follow in any order. Upper and lower case mean the same. A method is one file here, and one line in `BUILT_IN`.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Mapping
from typing import Literal

from mflux_teacache_plugin.host import faults
from mflux_teacache_plugin.methods import (
    cuts,
    dualcache,
    easycache,
    magcache,
    seacache,
    seconds,
    speedup,
    steps,
    teacache,
)
from mflux_teacache_plugin.methods.method import Method, Parser, to_share

AUTO: Literal["auto"] = "auto"
OFF: Literal["off"] = "off"

#: What this package brings along.
BUILT_IN: dict[str, Parser] = {
    "teacache": teacache.parse,
    "speedup": speedup.parse,
    "dualcache": dualcache.parse,
    "seacache": seacache.parse,
    "steps": steps.parse,
    "easycache": easycache.parse,
    "cuts": cuts.parse,
    "magcache": magcache.parse,
    "seconds": seconds.parse,
}

#: Skips no step; beside every method too, what guidance can do without is left out.
CUTS: Method = cuts.parse("")

#: Methods with an option of their own: name → what stands for its value, and its help.
OPTIONS = {"dualcache": dualcache.OPTION, "seacache": seacache.OPTION}


def parse(text: str, known: Mapping[str, Parser] = BUILT_IN) -> Method | Literal["auto", "off"]:
    """The method that a text names, or `auto` or `off`. ArgumentTypeError, with the fix, if it names none."""
    word = text.strip()
    if word.lower() in (AUTO, OFF):
        return AUTO if word.lower() == AUTO else OFF
    try:
        return _parsed(word, known)
    except ArgumentTypeError as error:
        if f"'{text}'" in str(error):
            raise
        raise ArgumentTypeError(f"'{text}': {error}") from None


#: What may stand behind a method, in any order; the `+` of 1e+20 is none of it.
_FURTHER = {"@": "window", "+": "forecast", ",cfg_end=": "cfg_end"}
_LAST = re.compile(r"(.*)(@|\+(?!\d)|,cfg_end=)(.*)", re.IGNORECASE | re.DOTALL)


def _parsed(text: str, known: Mapping[str, Parser], behind: tuple[str, ...] = ()) -> Method:
    """The method of a text, without what stood behind it."""
    found = _LAST.fullmatch(text)
    if found is None:
        return _method(text, known)
    rest, mark, value = found[1], found[2].lower(), found[3]
    if mark in behind:
        raise ArgumentTypeError(f"'{mark.strip(',')}' is given twice")
    if rest.strip().lower() in (AUTO, OFF):
        option = {"+": ", or give --teacache-forecast", ",cfg_end=": ", or give --cfg-end"}.get(mark, "")
        raise ArgumentTypeError(f"'{rest.strip()}' takes no {_FURTHER[mark]}; name a method, such as 2x{option}")
    method = _parsed(rest, known, (mark, *behind))
    if mark == "@":
        return method.with_window(value)
    return method.with_forecast(value.lower()) if mark == "+" else method.with_cfg_end(to_share(value))


def _method(text: str, known: Mapping[str, Parser]) -> Method:
    name, colon, setting = text.partition(":")
    if text.lower() == "cuts":
        name, setting = text, ""
    elif not colon:  # three methods are known by the form of their setting
        name = "speedup" if text.lower().endswith("x") else "seconds" if re.match(r"[\d.].*[sS]$", text) else "teacache"
        setting = text
    parser = known.get(name.lower())
    if parser is None:
        raise ArgumentTypeError(f"'{name}' is no method; there are {', '.join(sorted(known))}")
    try:
        return parser(setting)
    except ArgumentTypeError:
        raise
    except Exception as fault:
        raise ArgumentTypeError(f"'{name}' cannot read its setting: {faults.in_words(fault)}") from fault
