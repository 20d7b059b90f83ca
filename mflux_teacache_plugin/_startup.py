"""What runs when the interpreter starts: is this a process that wants the plugin?

`mflux_teacache_plugin_startup.pth` (`.start` from Python 3.15) calls `activate()` in every Python process of the
environment, twice in a venv. So this file imports `os` and `sys`, and nothing else unless the answer is yes; and it lets no
exception out: an ordinary one would print a traceback at every start, a SystemExit would end the interpreter.
"""

import os
import sys

TYPE_CHECKING = False  # typing's own, without importing typing
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

_facts: "dict[str, Any]" = {"calls": 0, "activated": False, "why": "the start-up file did not run"}


def activate(why: str = "") -> None:
    """Wait for mflux if this process wants TeaCache; a non-empty `why` wants it whatever the command is."""
    try:
        _facts["calls"] += 1
        if not _facts["activated"]:
            _facts["activated"], _facts["why"] = _gate(why)
            if _facts["activated"]:
                from mflux_teacache_plugin.host.imports import when_imported

                when_imported("mflux", _install_bridge)
    except BaseException as fault:  # noqa: BLE001 - site.py would get it: see the module's docstring
        _report("start-up failed", fault)


def state() -> "dict[str, Any]":
    """Facts for `mflux-teacache doctor`: calls, activated, why (or why not), and the modules still waited for."""
    imports = sys.modules.get("mflux_teacache_plugin.host.imports")
    return {**_facts, "pending": [] if imports is None else imports.pending()}


def _gate(why: str) -> "tuple[bool, str]":
    if os.environ.get("MFLUX_TEACACHE_DISABLE", "") not in ("", "0"):
        return False, "MFLUX_TEACACHE_DISABLE is set"
    if why or os.environ.get("MFLUX_TEACACHE"):
        return True, why or "MFLUX_TEACACHE is set"
    argv = getattr(sys, "argv", None) or [""]
    command = os.path.basename(argv[0])
    if command == "-m":  # the module's name is not in argv yet; in orig_argv it stands just before the arguments
        module = "".join(sys.orig_argv[-len(argv) :][:1])
        module = module.partition("m")[2] if module.startswith("-") else module  # `-mNAME`, `-umNAME`
        kernel = module == "ipykernel_launcher"  # in a notebook the variable may be set later, in a cell
        return kernel or module.startswith("mflux."), f"python -m {module} is running"
    # mflux-teacache itself is not meant: its verbs ask for the hook where they need it
    return command.startswith("mflux-") and command != "mflux-teacache", f"{command or 'no command'} is running"


def _install_bridge(_mflux: "ModuleType") -> None:
    from mflux_teacache_plugin.host.bridge import install

    install()


def _report(what: str, fault: BaseException) -> None:
    try:
        text = " ".join(f"{what}: {type(fault).__name__}: {fault}".split())
        sys.stderr.write(f"mflux-teacache: {text} (MFLUX_TEACACHE_DEBUG=1 shows where)\n")
        if os.environ.get("MFLUX_TEACACHE_DEBUG", "") not in ("", "0"):
            sys.excepthook(type(fault), fault, fault.__traceback__)
    except Exception:  # noqa: BLE001 - no standard error to write to, or an exception that cannot be printed
        return
