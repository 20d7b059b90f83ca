"""The process of one run: `mflux-teacache exec`, and in the end its peak memory in a file.

    python -m mflux_teacache_plugin.measure.child FILE COMMAND OPTIONS…

Only the process itself can tell: what the system reports of a child that ended counts its parent's memory too.
"""

import json
import re
import resource
import sys
from argparse import Namespace
from pathlib import Path

from mflux_teacache_plugin.cli import exec as verb


def main() -> None:
    file, *command = sys.argv[1:]
    try:
        sys.exit(verb.run(Namespace(command=command)))
    finally:
        Path(file).write_text(json.dumps({"memory": _process(), "mlx_memory": _mlx()}))


def _process() -> int:
    """The highest resident set size of this process, in bytes."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


def _mlx() -> int | None:
    """The most memory that MLX had in use at a time, in bytes."""
    mlx = sys.modules.get("mlx.core")
    return None if mlx is None else mlx.get_peak_memory()


if __name__ == "__main__":
    main()
