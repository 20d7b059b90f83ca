"""Everything that one looks at after a series: the grids, the charts, and the report that holds them all."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mflux_teacache_plugin.measure import plots, report
from mflux_teacache_plugin.measure.files import write as write_file
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.plots import Tile
from mflux_teacache_plugin.measure.report import Shown
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.methods import OFF

Lines = list[tuple[str, list[Tile]]]


def lines(cases: Sequence[Case], shots: Sequence[Shot], near: Mapping[str, Similarity], folder: Path) -> Lines:
    """For each case and setting a line of tiles: plain, the setting, plain with as many steps."""
    first = {(shot.case, shot.setting, shot.steps): shot for shot in shots if shot.repetition == 0}

    def tile(title: str, shot: Shot, is_reference: bool = False) -> Tile:
        measured = None if is_reference else near[shot.file]
        return Tile(title, folder / shot.file, shot.run.computed, shot.run.seconds, measured)

    found: Lines = []
    for case in cases:
        plain = first[case.name, OFF, case.steps]
        for shot in [each for each in first.values() if each.case == case.name and each.setting != OFF]:
            fewer = first[case.name, OFF, shot.run.fewer]
            tiles = [tile("plain", plain, True), tile(shot.setting, shot), tile("plain, fewer steps", fewer)]
            found.append((f"{case.prompt}\n{shot.setting}", tiles))
    return found


def write(
    title: str,
    about: str,
    cases: Sequence[Case],
    shots: Sequence[Shot],
    near: Mapping[str, Similarity],
    rows: Sequence[Row],
    pictures: Path,
    out: Path,
) -> None:
    """Write comparison.png, speed.png, frontier.png and report.html to `out`; the pictures lie in `pictures`.

    Several groups get a comparison each, comparison-1.png and so on; several quantizations of a model get sizes.png.
    """
    groups = list(dict.fromkeys(case.group for case in cases))
    shown = []
    for number, group in enumerate(groups, start=1):
        of_group = lines([case for case in cases if case.group == group], shots, near, pictures)
        if len(cases) == 1:
            of_group = [(label.partition("\n")[2], tiles) for label, tiles in of_group]
        if of_group:
            plots.grid(of_group, out / (f"comparison-{number}.png" if len(groups) > 1 else "comparison.png"))
        for label, tiles in of_group:
            heading = label.replace("\n", " – ") if len(groups) == 1 else f"{group}: {label.replace(chr(10), ' – ')}"
            shown.append((heading, [Shown(tile.title, tile.figures, tile.file) for tile in tiles]))
    charts = [out / "frontier.png", out / "speed.png"] if any(row.setting != OFF for row in rows) else []
    if charts:
        plots.frontier(rows, charts[0])
        plots.bars(rows, charts[1])
    if any(row.whole for row in rows):
        charts.append(out / "sizes.png")
        plots.sizes(rows, charts[-1])
    write_file(out / "report.html", report.html(title, about, rows, charts, shown))
