"""What the values of a coefficient file must look like, and what to say when they do not.

Each check takes (problems, key, value), adds to the problems what is wrong and how to mend it, and returns the value as
the dataclasses of `variants` keep it. A check never raises and never stops at the first fault: a file is judged whole.
"""

import dataclasses
import datetime
import difflib
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

_KINDS = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", tuple: "array", dict: "table"}

#: (problems, key, value) → the value as a dataclass keeps it; meaningless once the problems grew.
Check = Callable[["Problems", str, Any], Any]


class Problems(list[str]):
    """What is wrong with one file: a line each, with the key and the mend."""

    def add(self, key: str, what: str, mend: str) -> None:
        self.append(f"{key}: {what}; {mend}")


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


def count(problems: Problems, key: str, value: object) -> int | None:
    """A number of steps, at least one."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    problems.add(key, f"expected a whole number of steps, at least 1, got {show(value)}", "write 1 if unsure")
    return None


def threshold(problems: Problems, key: str, value: object) -> float | None:
    """0 < threshold <= 2, as on the command line."""
    found = number(problems, key, value)
    if found is not None and not 0 < found <= 2:
        problems.add(key, f"{found} is outside 0 < threshold <= 2", "most models want 0.1 to 0.4")
    return found


def names(problems: Problems, key: str, value: object) -> tuple[str | None, ...]:
    """Model names; `related` may be empty, `models` may not."""
    if not isinstance(value, (list, tuple)) or (not value and key == "models"):
        problems.add(key, f"expected a list of names, got {show(value)}", f'write {key} = ["me/my-finetune"]')
        return ()
    return tuple(text(problems, f"{key}[{index}]", name) for index, name in enumerate(value))


def polynomial(problems: Problems, key: str, value: object) -> tuple[float | None, ...]:
    """Five finite numbers, highest power first."""
    return _numbers(problems, key, value, 5, "give the coefficients of x^4, x^3, x^2, x and 1 in this order")


def span(problems: Problems, key: str, value: object) -> tuple[float | None, ...]:
    """[low, high] with 0 <= low < high."""
    found = _numbers(problems, key, value, 2, "give the lowest and the highest signal change of the fit, or no range")
    ends = [end for end in found if end is not None]
    if len(ends) == 2 and not 0 <= ends[0] < ends[1]:
        problems.add(key, f"expected 0 <= low < high, got {ends}", "write the lower end first")
    return found


def falling(problems: Problems, key: str, value: object) -> tuple[float | None, ...]:
    """At least two shares of noise between 0 and 1, each below the one before."""
    found = _numbers(problems, key, value, None, "give the σ of a run, from its first step to its last")
    shares = [share for share in found if share is not None]
    if len(found) == 1 or any(not 0 <= share <= 1 for share in shares) or sorted(set(shares))[::-1] != shares:
        problems.add(key, "expected at least two numbers between 0 and 1 that fall", "list them from noise to picture")
    return found


def rising(problems: Problems, key: str, value: object) -> tuple[float | None, ...]:
    """Numbers that start at 0 and never fall."""
    found = _numbers(problems, key, value, None, "give what has changed since the first sigma")
    sums = [each for each in found if each is not None]
    if sums and (sums[0] != 0 or sorted(sums) != sums):
        problems.add(key, "expected numbers that start at 0 and never fall", "add up the changes from step to step")
    return found


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
        if not all(end.isdecimal() and len(end) <= 4 for end in ([low, high] if dash else [low])):
            raise ValueError(f"not a step: {part}")
        found += range(int(low), int(high) + 1) if dash else [int(low)]
    if not found or sorted(set(found)) != found:
        raise ValueError(f"not rising: {text}")
    return tuple(found)


def _numbers(problems: Problems, key: str, value: object, length: int | None, mend: str) -> tuple[float | None, ...]:
    if not isinstance(value, (list, tuple)) or (len(value) != length if length else not value):
        problems.add(key, f"expected {length or 'a list of'} numbers, got {show(value)}", mend)
        return ()
    return tuple(number(problems, f"{key}[{index}]", entry) for index, entry in enumerate(value))


def key_field(check: Check, example: str, **default: Any) -> Any:
    """A dataclass field that is a key of the file: its check, and a line that shows how to write it."""
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


def tables(cls: type) -> Check:
    """The check of an array of tables."""
    one = table(cls)

    def check(problems: Problems, key: str, value: object) -> Any:
        if not isinstance(value, (list, tuple)):
            problems.add(key, f"expected an array of tables, got {show(value)}", f"write each in a section [[{key}]]")
            return ()
        return tuple(one(problems, f"{key}[{index}]", entry) for index, entry in enumerate(value))

    return check


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
            mend = f"did you mean {close[0]}?" if close else f"remove it; the keys are {', '.join(known)}"
            problems.add(prefix + key, "unknown key", mend)
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = field.metadata["check"](problems, prefix + name, data[name])
        elif field.default is dataclasses.MISSING:
            problems.add(prefix + name, "missing", f"add {field.metadata['example']}")
    return values
