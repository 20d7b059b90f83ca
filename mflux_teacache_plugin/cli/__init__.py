"""`mflux-teacache <verb>`: one module per verb, each with `add_arguments(parser)` and `run(args) -> exit code`.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a check failed, 2 it was asked wrongly.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import shards

#: Verb to what it does; the module of that name in this folder does it. `exec` is a word of Python's.
VERBS = {
    "variants": "list the coefficient files and which model each is for",
    "show": "show everything about one variant",
    "doctor": "check the installation, each problem with its mend",
    "exec": "run an mflux command or a Python script with the plugin, without the start-up file",
    "calibrate": "measure a model's own coefficient file with an mflux command",
    "compare": "make one picture with several settings, and show how near they come to plain mflux",
    "bench": "measure settings over a suite of models, prompts and seeds",
    "demo": "make pictures with the demo model: plain, with TeaCache, and plain in as many steps",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mflux-teacache", description="TeaCache for mflux's image commands.")
    parser.add_argument("--version", action="version", version=version("mflux-teacache-plugin"))
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, purpose in VERBS.items():
        module = import_module(f"{__name__}.{verb}")
        verb_parser = verbs.add_parser(verb, help=purpose, description=module.__doc__)
        module.add_arguments(verb_parser)
        verb_parser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except TeaCacheError as error:
        if os.environ.get("MFLUX_TEACACHE_DEBUG", "") not in ("", "0"):
            raise
        _complain(str(error))
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written to
        if os.environ.get("MFLUX_TEACACHE_DEBUG", "") not in ("", "0"):
            raise
        _complain(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""))
        return 2
    except KeyboardInterrupt:
        return 130


def _complain(text: str) -> None:
    """On stderr, with the name of this rank where a run is shared out over several."""
    label = shards.label()
    print(f"{label}: {text}" if label else text, file=sys.stderr)
