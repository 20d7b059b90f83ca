"""Make a fast draft of each of several seeds, with the model loaded once, and a contact sheet of them (sheet.html, sheet.png) on
which each has the command of its final picture. --final makes final pictures and puts them beside their drafts.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mflux_teacache_plugin.calibration import stages, sweep, takeover
from mflux_teacache_plugin.calibration.takeover import Model
from mflux_teacache_plugin.choose import Choice
from mflux_teacache_plugin.cli import bench, calibrate, compare, output
from mflux_teacache_plugin.errors import SettingsError
from mflux_teacache_plugin.measure import files, metrics, report, runs, series, shards
from mflux_teacache_plugin.measure.ledger import Ledger, has_shots
from mflux_teacache_plugin.measure.series import Case, Series
from mflux_teacache_plugin.methods import OFF

#: Of the drafts, where nothing is said: how many, and the first seed where the command has none.
SEEDS, FIRST = 16, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "mflux-teacache drafts [options] -- COMMAND ..."
    add, told = parser.add_argument, "how many, from the command's --seed or 1 on; default: those that are there, or 16"
    add("--seeds", type=int, metavar="N", help=told)
    told = "the method that makes the drafts, such as 3x, the default"
    add("--setting", type=calibrate.setting, default="3x", metavar="VALUE", help=told)
    add("--final", nargs="+", type=int, default=(), metavar="SEED", help="drafts to make in full too, without TeaCache")
    told = "where each command's drafts get a folder of their own; default: drafts"
    add("--folder", type=Path, default=Path("drafts"), metavar="FOLDER", help=told)
    bench.add_common(parser)
    told = "an image command of mflux with its options, such as `-- mflux-generate --model dev --prompt ...`"
    add("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help=told)


def run(args: argparse.Namespace) -> int:
    if not shards.leads():
        return 0  # one model makes them all
    metrics.require()
    if args.seeds is not None and args.seeds < 1:
        raise SettingsError(f"--seeds {args.seeds} makes no draft", hint="give 1 or more")
    command = runs.Command.of(args.command)
    first = compare.one_picture(command, (args.setting,), FIRST)
    folder = args.folder / stages.slug(f"{first.prompt} {command}")
    files.check_writable(folder)
    there = itertools.takewhile(lambda seed: has_shots(folder, str(seed)), itertools.count(first.seed))
    count = args.seeds or len(list(there)) or SEEDS

    def case(seed: int) -> Case:
        of_seed = command.with_options(seed=seed, teacache=OFF)
        return replace(first, name=str(seed), prompt="", seed=seed, command=of_seed)

    cases = [case(seed) for seed in range(first.seed, first.seed + count)]
    if unknown := set(args.final) - {each.seed for each in cases}:
        cause = f"the seeds of the drafts are {first.seed} to {cases[-1].seed}"
        hint = "name some of these, or make more drafts with --seeds"
        raise SettingsError(f"there is no draft of seed {min(unknown)}", cause=cause, hint=hint)
    ledger = Ledger(folder, args.fresh)
    wanted = [(each, args.setting) for each in cases] + [(each, OFF) for each in cases if each.seed in args.final]
    missing = [(each, way) for each, way in wanted if ledger.find(each, way, each.steps, 0) is None]
    if missing:
        _make(missing, args.setting, ledger)
    _conclude(first, cases, args, ledger, folder)
    return 0


def _make(missing: Sequence[tuple[Case, str]], setting: str, ledger: Ledger) -> None:
    """What is missing, each a case and its setting, with one model."""
    choices: list[Choice] = []

    def make(model: Model) -> None:
        with series.progress(len(missing)) as counted:
            for case, way in missing:
                draft = ledger.find(case, setting, case.steps, 0)  # which knows how many steps the loop takes
                active = 1.0 if draft is None else (draft.run.computed + draft.run.skipped) / draft.run.steps
                ledger.maker = counted(sweep.maker(model, choices[-1].variant, active, ledger.pictures))
                ledger.make(case, way, case.steps, 0)

    takeover.run(missing[0][0].command, lambda choice, _: choices.append(choice), make)


def _conclude(first: Case, cases: Sequence[Case], args: argparse.Namespace, ledger: Ledger, folder: Path) -> None:
    """The sheet, with what is there of the cases, and what is printed."""
    ways = (args.setting, OFF)
    made = [(case, [shot for way in ways if (shot := ledger.find(case, way, case.steps, 0))]) for case in cases]
    full = {case.name: case.name for case, shots in made if len(shots) > 1}
    near = Series(list(cases), [shot for _, shots in made for shot in shots], ledger.pictures).similarities(full)
    tiles, table = [], []
    for case, (draft, *finals) in made:
        likeness, title, text = near.get(draft.file), f"seed {case.seed}", str(case.command)
        shown = [report.tile(title, draft, ledger.pictures, likeness, text)]
        tiles.append(shown + [report.tile(f"{title}, final", final, ledger.pictures) for final in finals])
        row: dict[str, Any] = {"seed": case.seed, "computed": draft.run.computed, "seconds": draft.run.seconds}
        row |= {"ssim": likeness and likeness.ssim, "psnr": likeness and likeness.psnr, "draft": draft.file}
        table.append({**row, "final": finals[0].file if finals else None, "command": text})
    about = f"{first.group}. Drafts: {args.setting}. Below each, the command of its final picture."
    pairs_first = sorted(tiles, key=len, reverse=True)  # in rows of an even length they stay together
    report.contact(first.prompt, about, list(itertools.chain.from_iterable(pairs_first)), folder)
    sheet = folder / "sheet.html"
    if args.format == "json":
        output.print_json({"setting": args.setting, "sheet": sheet, "pictures": ledger.pictures, "drafts": table})
    else:
        head = [name for name in table[0] if name != "command"]
        output.print_table([name.upper() for name in head], [[each[name] for name in head] for each in table])
    print(f"sheet: {sheet}, or {sheet.with_suffix('.png').name} beside it", file=sys.stderr)
