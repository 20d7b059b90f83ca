"""Reading TOML files, coefficient files and suites, and what to say when one does not look as it must.

Each check takes (problems, key, value), adds to the problems what is wrong and how to fix it, and returns the value as
the dataclasses with the schema keep it. A check never raises and never stops at the first fault: a file is judged whole.
"""

import dataclasses
import datetime
import difflib
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.errors import TeaCacheError, VariantFileError

_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", tuple: "array", dict: "table"}

#: The longest file that is read, in characters.
LONGEST = 4_000_000

#: The most steps of a run, and the largest of other whole numbers.
MOST_STEPS, MOST = 9_999, 2**63 - 1

#: (problems, key, value) → the value as a dataclass keeps it; meaningless once the problems grew.
Check = Callable[["Problems", str, Any], Any]


class Problems(list[str]):
    """What is wrong with one file: a line each, with the key and the fix."""

    def add(self, key: str, what: str, fix: str) -> None:
        self.append(f"{key}: {what}; {fix}")


def read_toml(path: Path, error: type[TeaCacheError] = VariantFileError) -> dict[str, Any]:
    """What a TOML file holds, after a byte-order mark. `error` if it cannot be read, is too long, or is not TOML."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            hint = "name a file that was written by hand or by mflux-teacache"
            raise error(f"{path} is too long", cause=f"more than {LONGEST // 10**6} million characters", hint=hint)
        return tomllib.loads(text)
    except OSError as why:
        cause, hint = why.strerror or str(why), "check the path and its permissions"
        raise error(f"{path} cannot be read", cause=cause, hint=hint) from why
    except (ValueError, RecursionError) as why:  # not UTF-8, bad syntax, integers too long, nesting too deep
        hint = "text needs quotes, lists brackets: https://toml.io"
        raise error(f"{path} is not valid TOML", cause=str(why), hint=hint) from why


def show(value: object) -> str:
    """A value as an error message quotes it: short, and with its kind."""
    if isinstance(value, int) and value.bit_length() > 64:  # repr() refuses integers of several thousand digits
        return "a very large integer"
    if isinstance(value, (list, tuple, dict)):
        return f"{_KINDS[type(value)]} of {len(value)}"
    quoted = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else repr(value)
    quoted = quoted if len(quoted) <= 60 else quoted[:57] + "..."
    return f"{quoted} ({_KINDS.get(type(value), type(value).__name__)})"


def text(problems: Problems, key: str, value: object) -> str | None:
    """Some text; white space around it is dropped."""
    if isinstance(value, str) and value.strip():
        return value.strip()
    problems.add(key, f"expected text, got {show(value)}", "write it in quotes")
    return None


def identifier(problems: Problems, key: str, value: object) -> str | None:
    """A variant id: also a file name and a word on the command line."""
    if isinstance(value, str) and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", value):
        return value
    problems.add(key, f"not a usable id: {show(value)}", "use lower-case letters, digits, '.' and '-'")
    return None


def date(problems: Problems, key: str, value: object) -> str | None:
    """A date as text; TOML's own dates are taken too."""
    return value.isoformat() if isinstance(value, datetime.date) else text(problems, key, value)


def flag(problems: Problems, key: str, value: object) -> bool | None:
    """true or false."""
    if isinstance(value, bool):
        return value
    problems.add(key, f"expected true or false, got {show(value)}", "write it without quotes")
    return None


def number(problems: Problems, key: str, value: object) -> float | None:
    """A finite number. A boolean is none, though Python counts it as an integer."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        problems.add(key, f"expected a number, got {show(value)}", "write a plain number such as 0.2")
        return None
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if math.isfinite(found):
        return found + 0.0  # makes -0.0 and 0.0 the same, in a digest too
    problems.add(key, f"expected a finite number, got {show(value)}", "repeat the fit that gave it, or take it out")
    return None


def whole(least: int, most: int = MOST, what: str = "", fix: str = "write it without quotes") -> Check:
    """The check of a whole number, of `what`, within limits."""

    def check(problems: Problems, key: str, value: object) -> int | None:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if is_whole and least <= value <= most:  # type: ignore[operator]
            return value  # type: ignore[return-value]
        limit = f"at most {most}" if is_whole and value > most else f"at least {least}"  # type: ignore[operator]
        problems.add(key, f"expected a whole number{what}, {limit}, got {show(value)}", fix)
        return None

    return check


#: A number of steps.
count = whole(1, MOST_STEPS, " of steps", "write 1 if unsure")


def many(one: Check, least: int = 1, most: int | None = None, what: str = "a list", fix: str = "") -> Check:
    """The check of a list of so many entries: of each of them. `fix` may name the `{key}`."""
    fix = fix or "write it in brackets, with at least one entry"

    def check(problems: Problems, key: str, value: object) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= (most or len(value)):
            problems.add(key, f"expected {what}, got {show(value)}", fix.format(key=key))
            return ()
        return tuple(one(problems, f"{key}[{index}]", entry) for index, entry in enumerate(value))

    return check


def names(least: int) -> Check:
    """The check of a list of model names."""
    return many(text, least, what="a list of names", fix='write {key} = ["me/my-finetune"]')


def threshold(problems: Problems, key: str, value: object) -> float | None:
    """0 < threshold <= 2, as on the command line."""
    found = number(problems, key, value)
    if found is not None and not 0 < found <= 2:
        problems.add(key, f"{found} is outside 0 < threshold <= 2", "most models want 0.1 to 0.4")
    return found


def _numbers(fix: str, holds: Callable[[Any], bool], what: str, order: str, length: int | None = None) -> Check:
    """The check of numbers, and of what has to hold for all of them together."""
    numbers = many(number, length or 1, length, f"{length or 'a list of'} numbers", fix)

    def check(problems: Problems, key: str, value: object) -> tuple[float | None, ...]:
        found = numbers(problems, key, value)
        if found and None not in found and not holds(found):
            problems.add(key, what.format(*found), order)
        return found

    return check


polynomial = many(number, 5, 5, "5 numbers", "give the coefficients of x^4, x^3, x^2, x and 1 in this order")

span = _numbers(
    "give the lowest and the highest signal change of the fit, or no range",
    lambda ends: 0 <= ends[0] < ends[1],
    "expected 0 <= low < high, got [{}, {}]",
    "write the lower end first",
    length=2,
)

falling = _numbers(
    "give the σ of a run, from its first step to its last",
    lambda shares: 1 >= shares[0] > shares[-1] >= 0 and sorted(set(shares), reverse=True) == [*shares],
    "expected at least two numbers between 0 and 1 that fall",
    "list them from noise to picture",
)

rising = _numbers(
    "give what has changed since the first sigma",
    lambda sums: sums[0] == 0 and sorted(sums) == [*sums],
    "expected numbers that start at 0 and never fall",
    "add up the changes from step to step",
)

ratios = _numbers(
    "give one for each step of a run, the first of them 1",
    lambda found: found[0] == 1 and min(found) > 0,
    "expected numbers above 0 that begin with 1",
    "put 1.0 first: no step lies before the first",
)


def step_list(problems: Problems, key: str, value: object) -> tuple[int, ...]:
    """The steps to compute, from 0, as `0-10,12,15` or as a list of numbers."""
    try:
        if isinstance(value, (list, tuple)) and all(type(step) is int for step in value):
            return parse_steps(",".join(map(str, value)))
        return parse_steps(value if isinstance(value, str) else "")
    except ValueError:
        problems.add(key, f"expected rising steps, got {show(value)}", 'write them as "0-10,12,15,49"')
        return ()


def parse_steps(text: str) -> tuple[int, ...]:
    """Steps as they are published, `0-10,12,15`, as numbers. ValueError if they are none, or do not rise."""
    found: list[int] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        high = high if dash else low
        if not all(end.isdecimal() and len(end) <= 4 for end in (low, high)) or int(low) > int(high):
            raise ValueError(f"not a step: {part}")
        found += range(int(low), int(high) + 1)
    if not found or sorted(set(found)) != found:
        raise ValueError(f"not rising: {text}")
    return tuple(found)


def key_field(check: Check, example: str = "", **default: Any) -> Any:
    """A dataclass field that is a key of the file: its check, and how to write it, which who leaves a required one out is told."""
    return dataclasses.field(metadata={"check": check, "example": example}, **default)


def table(cls: type) -> Check:
    """The check of a nested table, given as the table itself or as the dataclass it becomes."""

    def check(problems: Problems, key: str, value: object) -> Any:
        before = len(problems)
        data = as_table(value) if isinstance(value, cls) else value
        if not isinstance(data, Mapping):
            problems.add(key, f"expected a table, got {show(value)}", f"write its keys in a section [{key}]")
            return None
        values = check_table(cls, data, problems, prefix=f"{key}.")
        return cls(**values) if len(problems) == before else None

    return check


def tables(cls: type, least: int = 0) -> Check:
    """The check of an array of at least so many tables."""
    return many(table(cls), least, what="an array of tables", fix="write each in a section [[{key}]]")


def as_table(instance: Any) -> dict[str, Any]:
    """A dataclass instance as the table it would be in a file: an optional key that is None is absent."""
    pairs = [(field, getattr(instance, field.name)) for field in dataclasses.fields(instance) if field.metadata]
    return {field.name: value for field, value in pairs if not (field.default is None and value is None)}


def check_table(cls: type, data: Mapping[str, Any], problems: Problems, prefix: str = "") -> dict[str, Any]:
    """The values of one table as `cls` keeps them; what is unknown, missing or wrong goes to `problems`."""
    known = {field.name: field for field in dataclasses.fields(cls) if field.metadata}
    for key in data:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            fix = f"did you mean {close[0]}?" if close else f"remove it; the keys are {', '.join(known)}"
            problems.add(prefix + key, "unknown key", fix)
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = field.metadata["check"](problems, prefix + name, data[name])
        elif field.default is dataclasses.MISSING:
            problems.add(prefix + name, "missing", f"add {field.metadata['example']}")
    return values
