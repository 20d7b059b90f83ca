"""One line about a fault that was survived. `MFLUX_TEACACHE_DEBUG=1` adds the traceback."""

import os
import sys

#: Set to anything but 0 to see tracebacks.
DEBUG = "MFLUX_TEACACHE_DEBUG"


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def in_words(fault: BaseException) -> str:
    """`TypeError: what it says`, in one line. Never raises."""
    try:
        says = str(fault)
    except Exception:  # noqa: BLE001 - somebody else's exception, which cannot say what happened
        says = "(it has no words)"
    return " ".join(f"{type(fault).__name__}: {says}".split())


def report(what: str, fault: BaseException) -> None:
    """Say on stderr what failed. Never raises."""
    try:
        sys.stderr.write(f"mflux: {what}: {in_words(fault)} ({DEBUG}=1 shows where)\n")
        if debugging():
            sys.excepthook(type(fault), fault, fault.__traceback__)
    except Exception:  # noqa: BLE001 - no standard error to write to, or an exception that cannot be printed
        return
