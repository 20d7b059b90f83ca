"""What the start-up file costs an interpreter that does not run mflux, as a ratio against the same environment without.

The environments are one: a venv with the checkout on its path, whose start-up file is swapped between two starts. The
starts alternate, so that whatever else the machine does hits every row alike; CPU time is user + system of the child.

    python benchmarks/startup.py [--starts 300]
"""

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "mflux_teacache_plugin_startup.pth"
STARTUP = (ROOT / "build_support" / NAME).read_text(encoding="utf-8")

BASE = "without"
ROWS = {  # name → content of the start-up file, environment
    BASE: (None, {}),
    "without, again (the noise)": (None, {}),
    "a .pth of one comment": ("# nothing\n", {}),
    "with the start-up file": (STARTUP, {}),
    "with it, disabled": (STARTUP, {"MFLUX_TEACACHE_DISABLE": "1"}),
    "with it, hook installed": (STARTUP, {"MFLUX_TEACACHE": "0.2"}),
}


def start(python: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Wall-clock and CPU milliseconds of one interpreter that does nothing."""
    begin = time.perf_counter()
    process = subprocess.Popen([python, "-c", "pass"], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the interpreter ended with {process.returncode}")
    return 1000 * wall, 1000 * (usage.ru_utime + usage.ru_stime)


def measure(folder: Path, starts: int) -> dict[str, list[tuple[float, float]]]:
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    (site / "_paths.pth").write_text(f"{ROOT}\n", encoding="utf-8")  # as an editable install has it, in every row
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MFLUX_", "PYTHON"))}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for turn in range(starts + 3):  # the first ones write bytecode and warm the disk cache
        for name in random.sample(list(ROWS), len(ROWS)):
            content, extra = ROWS[name]
            (site / NAME).unlink(missing_ok=True)
            if content is not None:
                (site / NAME).write_text(content, encoding="utf-8")
            once = start(folder / "bin" / "python", clean | extra)
            if turn >= 3:
                times[name].append(once)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=300, help="interpreter starts per row (default: 300)")
    starts = parser.parse_args().starts
    with tempfile.TemporaryDirectory() as folder:
        times = measure(Path(folder) / "venv", starts)
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}, ",
        end="",
    )
    print(f"medians of {starts} alternating starts\n")
    print(f"| {'environment':27} | wall ms | ratio | CPU ms | ratio | CPU ms more |")
    print(f"|{'-' * 29}|--------:|------:|-------:|------:|------------:|")
    for name, rows in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        base_wall, base_cpu = (statistics.median(column) for column in zip(*times[BASE], strict=True))
        more = statistics.median(mine[1] - base[1] for mine, base in zip(rows, times[BASE], strict=True))
        print(
            f"| {name:27} | {wall:7.2f} | {wall / base_wall:5.3f} | {cpu:6.2f} | {cpu / base_cpu:5.3f} | {more:11.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
