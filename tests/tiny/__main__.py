"""Run one of mflux's commands on tiny checkpoints in a process of its own.

    python -m tests.tiny FOLDER mflux-generate-flux2 --model flux2 --base-model flux2-klein-tiny --prompt ...

`--model KIND` becomes the checkpoint of that kind in FOLDER, written if it is missing. Everything else is the
command's own, with `sys.argv[0]` as its console script would have it.
"""

import os
import sys
from pathlib import Path

from tests.tiny.workspace import OFFLINE


def main() -> None:
    """Set up, then hand over to the command."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    os.environ.update(OFFLINE)
    from tests.tiny import flux1
    from tests.tiny.commands import entry_point
    from tests.tiny.workspace import tiny_mflux

    folder, name, *argv = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tiny_mflux(Path(folder)) as tiny:
        if "--model" in argv:
            kind = argv.index("--model") + 1
            if argv[kind] in (*flux1.KINDS, "flux2"):
                argv[kind] = str(tiny.checkpoint(argv[kind]))
        sys.argv = [name, *argv]
        entry_point(name)()


if __name__ == "__main__":
    main()
