"""All that one looks at after a series: grids of pictures with their differences, charts, and one HTML file that loads nothing."""

import base64
import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files as resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mflux_teacache_plugin.measure import files, machine, results
from mflux_teacache_plugin.measure.metrics import Similarity, pixels
from mflux_teacache_plugin.measure.results import Row, by_group
from mflux_teacache_plugin.measure.series import Series, Shot
from mflux_teacache_plugin.methods import OFF

#: Longest side of a picture in the report, in pixels; larger ones are scaled down. The originals lie beside it.
LONGEST = 768

#: Differences are shown on a scale that ends here, in grey levels of 255; larger ones look the same.
STRONGEST = 64

#: So many lines of pictures are shown of a group; all pictures lie beside the report.
MOST_LINES = 40


class Tile(NamedTuple):
    """A picture in a line; in words, what it took and how near it is to the first of its line ("" for that one)."""

    title: str
    file: Path
    cost: str
    nearness: str = ""
    command: str = ""  #: to copy


Lines = list[tuple[str, list[Tile]]]


def conclude(
    title: str, about: str, facts: dict[str, Any], made: Series, out: Path
) -> tuple[list[Row], dict[str, Any]]:
    """Compare the pictures, and write results.json (`facts` come first in it), comparison.png, frontier.png and report.html to
    `out`; the rows, and what results.json holds.

    Several groups get a comparison each, comparison-1.png and so on; several quantizations of a model get sizes.png.
    """
    near = made.against_plain()
    rows = results.rows(made, near)
    table = {**facts, **results.as_table(made, near, rows)}
    files.write(out / "results.json", files.as_json(table))
    groups, shown, commands = by_group(rows), lines(made, near), {}
    for number, (group, of_group) in enumerate(groups.items(), start=1):
        chosen, first = results.best(of_group), next(case for case in made.cases if case.group == group)
        setting = chosen and chosen.setting.partition(" ")[0]  # a name begins with what --teacache takes
        commands[group] = first.command.with_options(steps=first.steps, teacache=setting)
        if group in shown:
            grid(shown[group], out / (f"comparison-{number}.png" if len(groups) > 1 else "comparison.png"))
    charts = {"frontier.png": frontier(rows)} if shown else {}
    charts |= {"sizes.png": sizes(rows)} if any(row.whole for row in rows) else {}
    for name, figure in charts.items():
        _save(figure, out / name)
    drawn = [_data("image/png", (out / name).read_bytes()) for name in charts]
    _page(out / "report.html", title=title, about=about, groups=groups, commands=commands, charts=drawn, shown=shown)
    return rows, table


def lines(made: Series, near: Mapping[str, Similarity]) -> dict[str, Lines]:
    """By group, for each case and each setting that all of them have: prompt and setting, and three tiles, plain, with the
    setting, and plain with as many steps. The first MOST_LINES of a group.
    """
    cases, found = made.cases, dict[str, Lines]()
    first = {(shot.case, shot.setting, shot.steps): shot for shot in made.shots if shot.repetition == 0}
    for case in cases:
        plain = tile("plain", first[case.name, OFF, case.steps], made.folder)
        others = [other for other in cases if other.group == case.group]
        for setting in (each for each in case.settings if all(each in other.settings for other in others)):
            shot = first[case.name, setting, case.steps]
            fewer = first[case.name, OFF, shot.run.fewer(first[case.name, OFF, case.steps].run)]
            label = setting if len(cases) == 1 else f"{case.prompt}\n{setting}"
            ways = ((setting, shot), ("plain, fewer steps", fewer))
            tiles = [plain, *(tile(name, each, made.folder, near[each.file]) for name, each in ways)]
            found.setdefault(case.group, []).append((label, tiles))
    return {group: all_lines[:MOST_LINES] for group, all_lines in found.items()}


def tile(title: str, shot: Shot, folder: Path, near: Similarity | None = None, command: str = "") -> Tile:
    """A shot whose picture is in `folder`, and how near it is to what it is compared with, if to something."""
    told = ""
    if near is not None:
        told = f"SSIM {near.ssim:.3f}, " + ("the same" if np.isinf(near.psnr) else f"PSNR {near.psnr:.1f} dB")
    cost = f"{shot.run.computed:.4g} steps computed, {shot.run.seconds:.1f} s"
    return Tile(title, folder / shot.file, cost, told, command)


def contact(title: str, about: str, tiles: Sequence[Tile], out: Path) -> None:
    """Write a contact sheet to `out`: sheet.png, and sheet.html, in which each picture has its command."""
    rows, columns = -(-len(tiles) // 6), min(len(tiles), 6)
    figure, axes = _figure(rows, columns, (2.25 * columns, 2.75 * rows))
    for axis, each in itertools.zip_longest(axes.flat, tiles):
        if each is None:
            axis.remove()
        else:
            _show(axis, pixels(each.file), each.title, each.nearness or each.cost)
    _save(figure, out / "sheet.png")
    _page(out / "sheet.html", title=title, about=about, groups={}, charts=(), shown={"": [("", tiles)]})


def _page(file: Path, **page: Any) -> None:
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    files.write(file, template.render(page, machine=machine.line(), results=results, inlined=inlined))


def inlined(file: Path) -> str:
    """A small picture as it is, a large one scaled down."""
    from PIL import Image

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


def grid(rows: Lines, file: Path) -> None:
    """A row for each line: its first picture, then each other one with a heat map of its difference from the first."""
    columns = max(2 * len(tiles) - 1 for _, tiles in rows)
    figure, axes = _figure(len(rows), columns, (2.25 * columns + 0.3, 2.75 * len(rows)))
    for line, (label, (first, *others)) in zip(axes, rows, strict=True):
        line[0].set_ylabel(_plain("\n".join(textwrap.fill(part, 30) for part in label.splitlines())), fontsize=8)
        reference = pixels(first.file)
        cells: list[tuple[np.ndarray, str, str]] = [(reference, first.title, first.cost)]
        for tile in others:
            picture = pixels(tile.file)
            difference = np.abs(picture.astype(int) - reference).mean(axis=2)
            cells += [(picture, tile.title, tile.cost), (difference, "difference", tile.nearness)]
        for axis, (shown, title, caption) in zip(line, cells, strict=False):
            _show(axis, shown, title, caption)
        for axis in line[len(cells) :]:
            axis.remove()
    _save(figure, file)


def _show(axis: Any, shown: np.ndarray, title: str, caption: str) -> None:
    axis.imshow(shown, cmap="inferno", vmin=0, vmax=STRONGEST)  # ignored for colour pictures
    axis.set_title(_plain(title), fontsize=8)
    axis.set_xlabel(caption, fontsize=7.5)
    axis.set(xticks=[], yticks=[])
    axis.set_frame_on(False)


def frontier(rows: Sequence[Row]) -> Any:
    """PSNR over steps computed and over seconds, a line for each group: settings beside plain mflux with fewer steps."""
    groups = {group: of_group for group, of_group in by_group(rows).items() if len(of_group) > 1}
    figure, axes = _figure(len(groups), 2, (10, 3.4 * len(groups)), sharey="row")
    for line, (group, (plain, *settings)) in zip(axes, groups.items(), strict=True):
        for axis, of in zip(line, ("computed", "seconds"), strict=True):
            rivals = [(row.fewer, row.fewer_quality) for row in settings]
            fewer = sorted({(getattr(cost, of), near.psnr) for cost, near in rivals if cost and near})
            axis.plot(*zip(*fewer, strict=True), "o-", color="tab:orange", label="plain, fewer steps")
            most = max(row.pictures for row in settings)  # only what went through to the end is named
            names = [row.setting if row.pictures == most else "" for row in settings]
            found = zip(settings, names, strict=True)
            points = [(getattr(row.cost, of), row.quality.psnr, name) for row, name in found if row.quality]
            _points(axis, points, "settings", "tab:blue")
            axis.axvline(getattr(plain.cost, of), color="grey", linestyle=":", label="plain, all steps")
        line[0].xaxis.get_major_locator().set_params(integer=True)
        line[0].set(xlabel="steps computed", ylabel="PSNR against all steps, dB")
        line[1].set(xlabel="seconds of the denoising loop")
        line[0].set_title(_plain(group), fontsize=9, loc="left")
    axes[0][0].legend(fontsize=8, loc="lower right")
    return figure


def sizes(rows: Sequence[Row]) -> Any:
    """Quantizations of one model and their settings in one chart: PSNR against the plain pictures of the first of them."""
    models = list(dict.fromkeys(row.whole for row in rows if row.whole))
    figure, axes = _figure(1, len(models), (6 * len(models), 4))
    for axis, model in zip(axes[0], models, strict=True):
        for group, of_group in by_group([row for row in rows if model in (row.group, row.whole)]).items():
            nears = [(row, row.whole_quality if row.whole else row.quality) for row in of_group]
            points = [(row.cost.seconds, near.psnr, row.setting) for row, near in nears if near is not None]
            _points(axis, [(x, y, "plain" if name == OFF else name) for x, y, name in points], _plain(group))
        axis.set_title(_plain(f"against plain {model}"), fontsize=8)
        axis.set(xlabel="seconds of the denoising loop", ylabel="PSNR, dB")
        axis.legend(fontsize=7)
    return figure


def _points(axis: Any, points: Sequence[tuple[float, float, str]], label: str, color: str | None = None) -> None:
    """Named points."""
    (dots,) = axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "D", label=label, color=color)
    for x, y, name in points:
        axis.annotate(name, (x, y), (4, 4), textcoords="offset points", fontsize=7, color=dots.get_color())
    axis.grid(alpha=0.3)
    axis.margins(0.14)


def _figure(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Any, np.ndarray]:
    """A figure of so many inches, and its axes in rows."""
    from matplotlib.figure import Figure  # takes its time

    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _plain(text: str) -> str:
    """A text in which matplotlib sees no formula."""
    return text.replace("$", r"\$")


def _save(figure: Any, file: Path) -> None:
    data = io.BytesIO()
    figure.savefig(data, dpi=110, format="png")
    files.write(file, data.getvalue())
