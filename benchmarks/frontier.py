"""The frontier: every method and forecast at equal shares of the steps computed, on the demo model, as table and plot.

python benchmarks/frontier.py --rows frontier.jsonl --jobs 2 --table docs/benchmarks.md --plot docs/frontier.png

Each picture is compared with the one of the full run. Rows go to a file of JSON lines and a second call goes on where the
first was stopped; with --jobs 0 only table and plot are made from what is there. `rivals/run_cache_dit.py frontier` adds
cache-dit's rows to the same file, and --mlx-teacache FOLDER, its unpacked wheel, adds mlx-teacache's. A threshold for a
share is looked up in the changes that full runs of a few prompts read (MagCache reads none: its gate alone tells); what was
computed is counted, not assumed. MagCache has a row only if the model's variant has `mag_ratios`.
Preload OpenBLAS on Linux: MLX's own BLAS takes ten times as long.
"""

import argparse
import json
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from _demo import PAIRS, done, generate, pairs, score
from tqdm import tqdm

from mflux_teacache_plugin.measure import machine

sys.path.insert(0, str(Path(__file__).parent / "rivals"))

FULL, PLAIN, RIVAL, BEST = "full", "plain, fewer steps", "mlx-teacache", "the best other method"
#: Of the methods with a threshold that is found in recorded changes: what goes around it.
THRESHOLDS = {
    "TeaCache": "{}",
    "TeaCache + linear": "{}+linear",
    "SeaCache": "seacache:{}",
    "SeaCache + linear": "seacache:{}+linear",
    "EasyCache": "easycache:{}",
}
#: Of the method whose gate reads nothing.
UNREAD = {"MagCache": "magcache:{}"}
SCHEDULES = {"schedule, reuse": "{}x+reuse", "schedule": "{}x", "schedule, quadratic": "{}x+quadratic"}
#: Of the method whose threshold has to be tried.
TRIED = {
    "DualCache": "dualcache:F=1,B=0,rdt={},warmup=4",
    "DualCache + linear": "dualcache:F=1,B=0,rdt={},warmup=4+linear",
}
TRIES = (0.05, 0.1, 0.2, 0.4, 0.8)
#: Made first, for all steps and guidances, so that a run that is stopped shows what matters.
FIRST = (PLAIN, "schedule", "TeaCache")
METHODS = (*FIRST, *(method for method in (*SCHEDULES, *THRESHOLDS, *UNREAD, *TRIED) if method not in FIRST))
SHARES = (0.75, 0.6, 0.5, 0.35, 0.25)
#: A share in the table stands for what was computed within this distance of it.
NEAR = 0.08
#: So low that nothing is skipped, for recording changes.
NOTHING = 1e-6
PROBES = 4
TESTED = np.geomspace(1e-3, 2, 400)
#: For the estimate: a skipped step in computed ones, and a picture besides its steps in transformer calls.
SKIPPED_STEP, PICTURE = 0.15, 11


def unreachable(method: str) -> str | None:
    """The setting of a method with a threshold with which it skips nothing; None for other methods."""
    return THRESHOLDS.get(method, "{}").format(NOTHING) if method in (*THRESHOLDS, RIVAL) else None


@dataclass(frozen=True)
class Job:
    """One picture. `setting` is what `--teacache` takes; steps for PLAIN; a threshold for RIVAL; "" for FULL."""

    method: str
    setting: str
    steps: int
    guidance: float
    pair: int
    expected: float = 1.0  #: the share that will be computed

    @property
    def key(self) -> tuple:
        return (self.method, self.setting, self.steps, self.guidance, self.pair)

    @property
    def probe(self) -> bool:
        """Whether this is a run that skips nothing, for its changes."""
        return self.setting == unreachable(self.method)

    @property
    def cost(self) -> float:
        """In transformer calls."""
        steps = self.expected * (1 - SKIPPED_STEP) + SKIPPED_STEP
        if self.method == PLAIN:
            steps = self.expected
        return steps * self.steps * (1 + (self.guidance > 1)) + PICTURE


class Worker:
    """One process with the model: makes the pictures of jobs."""

    def __init__(self, pictures: Path, rival: Path | None, scheduler: str | None) -> None:
        from mflux_demo_model import load

        self.pictures, self.further = pictures, {"scheduler": scheduler} if scheduler else {}
        self.model = load()
        if rival is not None:
            sys.path.append(str(rival))

    def __call__(self, job: Job) -> dict[str, Any]:
        """The job's row: computed steps, psnr and ssim; the full run has seconds, a run that skips nothing its changes."""
        row = {key: value for key, value in asdict(job).items() if key != "expected"}
        file = self.pictures / f"{job.steps}-{job.guidance:g}-{job.pair}.npy"
        if job.method == FULL:
            picture, row["seconds"] = self._plain(job, job.steps)
            partial = file.with_suffix(".tmp.npy")
            np.save(partial, picture)
            partial.replace(file)
            return row
        if job.method == PLAIN:
            picture, _ = self._plain(job, int(job.setting))
            row["computed"] = int(job.setting)
        elif job.method == RIVAL:
            picture = self._rival(job, row)
        else:
            picture = self._cached(job, row)
        if not job.probe:
            row["psnr"], row["ssim"] = score(picture, np.load(file))
        return row

    def _plain(self, job: Job, steps: int) -> tuple[np.ndarray, float]:
        start = time.perf_counter()  # mflux's own time is its bar's, which is off
        picture, _ = generate(self.model, pairs()[job.pair], steps, job.guidance, **self.further)
        return picture, time.perf_counter() - start

    def _cached(self, job: Job, row: dict[str, Any]) -> np.ndarray:
        from mflux_teacache_plugin import apply_teacache

        with apply_teacache(self.model, job.setting) as handle:
            picture, _ = self._plain(job, job.steps)
        generation = handle.stats.last
        if generation.fault is not None:
            raise RuntimeError(f"{job}: {generation.fault}")
        row["computed"] = generation.computed
        if job.probe:
            row["changes"] = [decision.change for decision in generation.decisions]
        return picture

    def _rival(self, job: Job, row: dict[str, Any]) -> np.ndarray:
        from with_mlx_teacache import applied, computed

        from mflux_teacache_plugin import apply_teacache

        with apply_teacache(self.model, NOTHING) as handle:
            polynomial = handle.variant.polynomial
        with applied(self.model, float(job.setting), polynomial) as handle:
            picture, _ = self._plain(job, job.steps)
            row["computed"] = computed(handle)
            if job.probe:
                row["changes"] = [step.rel_l1 for step in handle.stats.last_generation.decisions]
        return picture


_worker: Worker


def _start(*args: Any) -> None:
    global _worker
    _worker = Worker(*args)


def _make(job: Job) -> dict[str, Any]:
    return _worker(job)


def variant_of_the_model() -> Any:
    """The demo model's."""
    from mflux_demo_model import NAME

    from mflux_teacache_plugin.variants.catalog import load_catalog

    return load_catalog().variants[NAME].variant


def gate_of(method: str, steps: int) -> Callable[[float], Any]:
    """Makes the gate of a method for a threshold, as it decides in so many steps."""
    from mflux_teacache_plugin.caching.gate import Facts, Setup
    from mflux_teacache_plugin.caching.stats import Generation
    from mflux_teacache_plugin.methods import parse
    from mflux_teacache_plugin.methods.teacache import TeaCacheGate

    variant = variant_of_the_model()
    if method == RIVAL:  # computes its first two steps, and takes the polynomial where it was not fitted too
        return lambda threshold: TeaCacheGate(steps, threshold, variant.polynomial, None, (2, 1))
    text = {**THRESHOLDS, **UNREAD}[method]
    setup = Setup(Facts((1.0,) * steps), Generation(steps), variant)
    return lambda threshold: parse(text.format(threshold)).gate(setup)


def thresholds(
    method: str, steps: int, recorded: list[list[float | None]], shares: Iterable[float]
) -> dict[float, float]:
    """For each share the threshold whose gate, shown the recorded changes, computes nearest to it in the mean."""
    make, computed = gate_of(method, steps), []
    for threshold in TESTED:
        counts = []
        for changes in recorded:
            gate = make(threshold)
            skips = [gate(step, lambda c=change: c or 0.0).skip for step, change in enumerate(changes)]
            counts.append(steps - sum(skips))
        computed.append(np.mean(counts) / steps)
    return {share: float(f"{TESTED[np.abs(np.array(computed) - share).argmin()]:.4g}") for share in shares}


def base(method: str) -> str:
    """The method without its forecast: they share changes."""
    return method.removesuffix(" + linear")


def probes(args: argparse.Namespace) -> Iterator[Job]:
    """Full runs, and runs of each thresholded method that skip nothing, for its changes."""
    for guidance in args.guidances:
        for steps in args.steps:
            yield from (Job(FULL, "", steps, guidance, pair) for pair in range(args.pairs))
            for method in args.methods:
                setting = unreachable(base(method))
                if setting is not None:
                    yield from (Job(base(method), setting, steps, guidance, n) for n in range(min(PROBES, args.pairs)))


def settings(method: str, steps: int, guidance: float, args: argparse.Namespace, rows: list[dict]) -> dict[str, float]:
    """The method's settings for the wanted shares, each with the share it stands for."""
    if method in TRIED:
        return {TRIED[method].format(value): 0.6 for value in TRIES}
    counts = {share: round(share * steps) for share in args.shares}
    if method == PLAIN:
        return {str(count): share for share, count in counts.items()}
    if method in SCHEDULES:
        # rounded down, for a speed-up that is rounded up costs a step
        return {
            SCHEDULES[method].format(math.floor(1e4 * steps / count) / 1e4): share for share, count in counts.items()
        }
    if method in UNREAD:
        if variant_of_the_model().mag_ratios is None:
            return {}
        found = thresholds(method, steps, [[None] * steps], args.shares)
        return {UNREAD[method].format(value): share for share, value in found.items()}
    wanted = {"method": base(method), "setting": unreachable(base(method)), "steps": steps, "guidance": guidance}
    recorded = [row["changes"] for row in rows if wanted.items() <= row.items() and row["pair"] < PROBES]
    found = thresholds(base(method), steps, recorded, args.shares)
    return {THRESHOLDS.get(method, "{}").format(value): share for share, value in found.items()}


def jobs_of(args: argparse.Namespace, rows: list[dict]) -> Iterator[Job]:
    """Every picture wanted, the first of the command line's guidances and steps first."""
    for first in (True, False):
        for guidance in args.guidances:
            for steps in args.steps:
                for method in (method for method in args.methods if (method in FIRST) is first):
                    for setting, share in settings(method, steps, guidance, args, rows).items():
                        yield from (Job(method, setting, steps, guidance, pair, share) for pair in range(args.pairs))


def run(jobs: Iterable[Job], args: argparse.Namespace) -> None:
    """Make the pictures whose rows are not there yet, and append their rows."""
    there = {tuple(row[k] for k in ("method", "setting", "steps", "guidance", "pair")) for row in done(args.rows)}
    missing = [job for key, job in {job.key: job for job in jobs}.items() if key not in there]
    if not missing:
        return
    pictures = args.rows.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    costs = {job.key: job.cost for job in missing}
    os.environ["TQDM_DISABLE"] = "1"  # in the workers: mflux shows a bar for every picture
    with (
        get_context("spawn").Pool(
            min(args.jobs, len(missing)), _start, (pictures, args.mlx_teacache, args.scheduler)
        ) as pool,
        args.rows.open("a") as file,
        tqdm(total=round(sum(costs.values())), unit="call", desc=f"{len(missing)} pictures") as bar,
    ):
        for row in pool.imap_unordered(_make, missing):
            file.write(json.dumps(row) + "\n")
            file.flush()
            bar.update(costs[row["method"], row["setting"], row["steps"], row["guidance"], row["pair"]])


@dataclass(frozen=True)
class Point:
    """A setting's pictures together."""

    share: float
    psnr: tuple[float, float]  #: mean and worst
    ssim: tuple[float, float]


def points(rows: list[dict[str, Any]], pictures: int) -> dict[tuple[int, float], dict[str, list[Point]]]:
    """By steps and guidance and method, the settings that have all pictures, by falling share computed."""
    grouped: dict[tuple, dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        if "psnr" in row and row["pair"] < pictures:
            grouped[row["steps"], row["guidance"], row["method"], row["setting"]][row["pair"]] = row
    found: dict[tuple[int, float], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for (steps, guidance, method, _), group in grouped.items():
        if len(group) == pictures:
            share, psnr, ssim = ([row[key] for row in group.values()] for key in ("computed", "psnr", "ssim"))
            point = Point(np.mean(share) / steps, (np.mean(psnr), min(psnr)), (np.mean(ssim), min(ssim)))
            found[steps, guidance][method].append(point)
    for methods in found.values():
        for each in methods.values():
            each.sort(key=lambda point: -point.share)
    return found


def near(methods: dict[str, list[Point]], method: str, share: float) -> Point | None:
    """The method's setting that computes nearest to a share, if it is near enough."""
    point = min(methods.get(method, ()), key=lambda point: abs(point.share - share), default=None)
    return point if point is not None and abs(point.share - share) <= NEAR else None


def table(
    found: dict[tuple[int, float], dict[str, list[Point]]], args: argparse.Namespace, link: str | None = None
) -> str:
    """What the schedule gains in a Markdown table, the plot, and folded behind them a table for each steps and guidance."""
    ours = "schedule"
    head = "| " + " | ".join(f"{share:.0%}" for share in args.shares) + " |\n" + "|---" * (1 + len(args.shares)) + "|\n"
    blocks = [f"{machine.line()}; {args.pairs} prompt-seed pairs."]
    runs = sorted(found.items(), key=lambda item: (-item[0][0], item[0][1]))
    gains = [
        line(
            f"{steps} steps, guidance {guidance:g}, over {told}", methods, args, partial(gain, ours=ours, others=others)
        )
        for (steps, guidance), methods in runs
        for told, others in ((PLAIN, [PLAIN]), (BEST, [each for each in methods if each not in (PLAIN, *SCHEDULES)]))
    ]
    blocks.append(
        f"What “{ours}” gains, dB of PSNR, in the mean / in the worst picture; {BEST}: the one with the highest mean:"
    )
    blocks.append("| steps computed " + head + "\n".join(gains))
    if link is not None:
        blocks.append(f"![Mean and worst PSNR over the share of the steps computed]({link})")
    blocks.append(
        "<details>\n<summary>Every method: PSNR mean / worst, SSIM mean / worst, share computed if another</summary>"
    )
    for (steps, guidance), methods in runs:
        order = sorted(methods, key=lambda method: (METHODS.index(method) if method in METHODS else 99, method))
        lines = [line(method, methods, args, partial(cell, method=method)) for method in order]
        blocks.append(f"{steps} steps, guidance {guidance:g}:\n\n| steps computed " + head + "\n".join(lines))
    return "\n\n".join([*blocks, "</details>"]) + "\n"


def line(name: str, methods: dict[str, list[Point]], args: argparse.Namespace, fill: Callable[..., str]) -> str:
    return f"| {name} | " + " | ".join(fill(methods, share=share) for share in args.shares) + " |"


def gain(methods: dict[str, list[Point]], ours: str, others: list[str], share: float) -> str:
    """Of our method over the best of others."""
    mine, near_ones = near(methods, ours, share), [near(methods, other, share) for other in others]
    its = max((point for point in near_ones if point), key=lambda point: point.psnr[0], default=None)
    if mine is None or its is None:
        return "–"
    return " / ".join(f"{a - b:+.1f}" for a, b in zip(mine.psnr, its.psnr, strict=True))


def cell(methods: dict[str, list[Point]], method: str, share: float) -> str:
    point = near(methods, method, share)
    if point is None:
        return "–"
    real = "" if round(point.share, 2) == round(share, 2) else f" at {point.share:.0%}"
    psnr = " / ".join(f"{value:.1f}" for value in point.psnr)
    return f"{psnr}, " + " / ".join(f"{value:.3f}".lstrip("0") for value in point.ssim) + real


def write_table(text: str, file: Path) -> None:
    """Between the marks in a file, or as the file."""
    start, end = "<!-- frontier -->\n", "<!-- end -->"
    before = file.read_text() if file.exists() else start + end + "\n"
    if start not in before:
        raise SystemExit(f"{file} has no line {start.strip()}")
    after = re.sub(
        rf"({start}).*?({end})", lambda m: m[1] + "\n" + text + "\n" + m[2], before, count=1, flags=re.DOTALL
    )
    partial = file.with_suffix(file.suffix + ".tmp")
    partial.write_text(after)
    partial.replace(file)


def plot(found: dict[tuple[int, float], dict[str, list[Point]]], file: Path) -> None:
    """Mean PSNR over the share computed, worst dotted; a row for each number of steps, a column for each guidance."""
    import matplotlib.pyplot as plt

    rows, columns = sorted({steps for steps, _ in found}), sorted({guidance for _, guidance in found})
    size = (3.4 * len(columns) + 2.2, 3 * len(rows) + 0.4)
    figure, axes = plt.subplots(len(rows), len(columns), figsize=size, squeeze=False, sharex=True, layout="constrained")
    names = sorted({m for methods in found.values() for m in methods}, key=lambda m: (m not in METHODS, m))
    colours = {name: plt.get_cmap("tab20")(index % 20) for index, name in enumerate(names)}
    for (steps, guidance), methods in found.items():
        axis = axes[rows.index(steps)][columns.index(guidance)]
        for name, each in methods.items():
            each = [point for point in each if point.share < 0.95]  # hardly anything skipped: off the scale
            shares = [point.share for point in each]
            axis.plot(shares, [p.psnr[0] for p in each], marker="o", markersize=3, color=colours[name], label=name)
            axis.plot(shares, [p.psnr[1] for p in each], linestyle=":", linewidth=0.8, color=colours[name])
        axis.set_title(f"{steps} steps, guidance {guidance:g}", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("share of the steps computed")
    for line in axes:
        line[0].set_ylabel("PSNR, dB (dotted: worst)")
    handles = {h.get_label(): h for line in axes for axis in line for h in axis.lines if h.get_label() in names}
    figure.legend(
        [handles[n] for n in names if n in handles],
        [n for n in names if n in handles],
        loc="outside right upper",
        fontsize=8,
    )
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path("frontier.jsonl"), help="the file of JSON lines")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 0 makes table and plot only")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 25])
    parser.add_argument("--guidances", type=float, nargs="+", default=[4.0, 1.0, 10.0, 20.0])
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, RIVAL), help="default: all")
    parser.add_argument("--scheduler", help="mflux's, for all pictures; one file of rows for each")
    parser.add_argument("--mlx-teacache", type=Path, metavar="FOLDER", help="the unpacked wheel of mlx-teacache")
    parser.add_argument("--table", type=Path, help="a Markdown file with the line <!-- frontier -->; default: stdout")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.methods is None:
        args.methods = [*METHODS, *([RIVAL] if args.mlx_teacache else [])]
    if args.jobs:
        run(probes(args), args)
        rows = done(args.rows)
        wanted = list(jobs_of(args, rows))
        full = [row for row in rows if row["method"] == FULL]
        each = sum(row["seconds"] for row in full) / sum(Job(FULL, "", r["steps"], r["guidance"], 0).cost for r in full)
        minutes = each * sum({job.key: job.cost for job in wanted}.values()) / args.jobs / 60
        print(f"{len(wanted)} pictures in all, about {minutes:.0f} minutes with {args.jobs} jobs", file=sys.stderr)
        run(wanted, args)
    found = points(done(args.rows), args.pairs)
    link = None
    if args.plot is not None and args.table is not None:
        link = os.path.relpath(args.plot, args.table.parent)
    text = table(found, args, link)
    if args.plot is not None:
        plot(found, args.plot)
    if args.table is None:
        print(text)
        return
    write_table(text, args.table)


if __name__ == "__main__":
    main()
