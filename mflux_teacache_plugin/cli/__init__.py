"""`mflux-teacache <verb>`: one module for each verb, with `add_arguments(parser)` and `run(args) -> exit code`.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a check failed or nobody foresaw what broke, 2 it was
asked wrongly, or a file or an image command failed, 130 interrupted, 141 nobody read on.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.host.faults import DEBUG, debugging, in_words
from mflux_teacache_plugin.measure import shards

#: Verb to the module of this folder that does it, and what it does.
VERBS = {
    "variants": ("listing", "list the coefficient files and which model each is for, or show everything about one"),
    "doctor": ("doctor", "check the installation, each problem with its fix"),
    "exec": ("exec", "run an mflux command or a Python script with the plugin, without the start-up file"),
    "calibrate": ("calibrate", "measure a model's own coefficient file with an mflux command"),
    "compare": ("compare", "make one picture with several settings, and show how near they come to plain mflux"),
    "drafts": ("drafts", "make fast drafts of many seeds, and the best of them in full"),
    "bench": ("bench", "measure settings over a suite of models, prompts and seeds"),
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="mflux-teacache", description="TeaCache for mflux's image commands.")
    parser.add_argument("--version", action="version", version=version("mflux-teacache-plugin"))
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (name, purpose) in VERBS.items():
        module = import_module(f"{__name__}.{name}")
        verb_parser = verbs.add_parser(verb, help=purpose, description=module.__doc__)
        module.add_arguments(verb_parser)
        verb_parser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - as long as the process lives
    args = build_parser().parse_args(argv)
    if args.verb == "exec":
        return exit_code(args.run, args, theirs=True)
    with stoppable():
        return exit_code(args.run, args)


@contextmanager
def stoppable() -> Iterator[None]:
    """Have SIGTERM, such as a launcher's, unwind this process as Ctrl-C would, so that nothing half-done is left behind."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def exit_code(run: Callable[[argparse.Namespace], int], args: argparse.Namespace, theirs: bool = False) -> int:
    """What `run` returns, or the code of an error that stderr names; an error of somebody else's program stays theirs."""
    try:
        code = run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `mflux-teacache variants | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at the end
        return 141
    except Exception as error:
        known = isinstance(error, TeaCacheError if theirs else (TeaCacheError, OSError))
        if debugging() or (theirs and not known):
            raise
        text = str(error)
        if isinstance(error, OSError):  # a full disk, a folder that cannot be written to
            text = f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        elif not known:
            text = f"error: {in_words(error)}\n  hint: {DEBUG}=1 shows where; please report it"
        label = shards.label()  # which rank, where a run is shared out over several
        print(f"{label}: {text}" if label else text, file=sys.stderr)
        return 2 if known else 1
