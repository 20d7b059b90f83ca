"""Everything that one looks at after a series: the grids, the charts, and one HTML file that holds them all and loads
nothing.

Imported where something is drawn: matplotlib takes its time.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from mflux_teacache_plugin.measure import files, machine, plots, results, series
from mflux_teacache_plugin.measure.metrics import Similarity
from mflux_teacache_plugin.measure.plots import Tile
from mflux_teacache_plugin.measure.results import Row
from mflux_teacache_plugin.measure.series import Case, Shot
from mflux_teacache_plugin.methods import OFF

#: Longest side of a picture in the report, in pixels; larger ones are scaled down. The originals lie beside it.
LONGEST = 768

Lines = list[tuple[str, list[Tile]]]


def conclude(
    title: str,
    about: str,
    facts: dict[str, Any],
    cases: Sequence[Case],
    shots: Sequence[Shot],
    pictures: Path,
    out: Path,
) -> tuple[list[Row], dict[str, Any]]:
    """Compare the pictures in the folder `pictures`, and write everything to `out`; the rows, and what results.json holds.

    Args:
        facts: come first in results.json.
    """
    near = series.similarities(shots, cases, pictures)
    whole = series.similarities(shots, cases, pictures, {case.name: case.whole for case in cases if case.whole})
    rows = results.rows(cases, shots, near, whole)
    table = {**facts, **results.as_table(cases, shots, near, rows)}
    files.write(out / "results.json", files.as_json(table))
    write(title, about, cases, shots, near, rows, pictures, out)
    return rows, table


def lines(cases: Sequence[Case], shots: Sequence[Shot], near: Mapping[str, Similarity], folder: Path) -> Lines:
    """For each case and setting a line: prompt and setting, and tiles: plain, the setting, plain with as many steps."""
    first = {(shot.case, shot.setting, shot.steps): shot for shot in shots if shot.repetition == 0}
    found: Lines = []
    for case in cases:
        plain = first[case.name, OFF, case.steps]
        for shot in [each for each in first.values() if each.case == case.name and each.setting != OFF]:
            fewer = first[case.name, OFF, shot.run.fewer]
            ways = (("plain", plain), (shot.setting, shot), ("plain, fewer steps", fewer))
            tiles = [
                Tile(title, folder / each.file, each.run.computed, each.run.seconds, near[each.file] if place else None)
                for place, (title, each) in enumerate(ways)
            ]
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
    """Write comparison.png, frontier.png and report.html to `out`; the pictures lie in `pictures`.

    Several groups get a comparison each, comparison-1.png and so on; several quantizations of a model get sizes.png.
    """
    groups = results.by_group(rows)
    shown: Lines = []
    commands = {}
    for number, (group, of_group) in enumerate(groups.items(), start=1):
        of_cases = [case for case in cases if case.group == group]
        chosen, first = results.best(of_group), of_cases[0]
        commands[group] = str(first.command.with_options(steps=first.steps, teacache=chosen and chosen.setting))
        made = lines(of_cases, shots, near, pictures)
        if len(cases) == 1:
            made = [(label.rpartition("\n")[2], tiles) for label, tiles in made]
        if made:
            plots.grid(made, out / (f"comparison-{number}.png" if len(groups) > 1 else "comparison.png"))
        shown += [(label if len(groups) == 1 else f"{group}: {label}", tiles) for label, tiles in made]
    charts = []
    if any(row.setting != OFF for row in rows):
        charts.append(out / "frontier.png")
        plots.frontier(rows, charts[0])
    if any(row.whole for row in rows):
        charts.append(out / "sizes.png")
        plots.sizes(rows, charts[-1])
    files.write(out / "report.html", html(title, about, rows, charts, shown, commands))


def html(
    title: str,
    about: str,
    rows: Sequence[Row],
    charts: Iterable[Path],
    pictures: Sequence[tuple[str, Sequence[Tile]]],
    commands: Mapping[str, str] | None = None,
) -> str:
    """The report's text: a table for each group of rows, with the group's command to copy; charts; lines of pictures."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    groups = [
        {
            "name": group,
            "verdict": results.verdict(of_group),
            "command": (commands or {}).get(group),
            "lines": [line for row in of_group for line in results.cells(row)],
        }
        for group, of_group in results.by_group(rows).items()
    ]
    return template.render(
        title=title,
        about=about,
        machine=machine.line(),
        head=results.HEAD,
        groups=groups,
        charts=[_data("image/png", chart.read_bytes()) for chart in charts],
        pictures=[
            (heading.replace("\n", " – "), [(tile, inlined(tile.file)) for tile in line]) for heading, line in pictures
        ],
    )


def inlined(file: Path) -> str:
    """A small picture as it is, a large one scaled down."""
    with Image.open(file) as picture:
        if max(picture.size) <= LONGEST:
            return _data("image/png", file.read_bytes())
        picture = picture.convert("RGB")
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        data = io.BytesIO()
        picture.save(data, "WEBP", quality=92)
        return _data("image/webp", data.getvalue())


def _data(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
