"""A report in one HTML file that needs nothing else: pictures and charts are inside, and it loads nothing."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from mflux_teacache_plugin.measure import machine, results
from mflux_teacache_plugin.measure.results import Row

#: Longest side of a picture in the report, in pixels; larger ones are scaled down. The originals lie beside it.
LONGEST = 768


@dataclass(frozen=True)
class Shown:
    """A picture of the report, with a title and a line of figures."""

    title: str
    caption: str
    file: Path


def html(
    title: str, about: str, rows: Sequence[Row], charts: Iterable[Path], pictures: Sequence[tuple[str, Sequence[Shown]]]
) -> str:
    """The report's text.

    Args:
        title: its heading.
        about: what was run, in a paragraph.
        rows: one table for each group.
        charts: picture files, shown at their full size.
        pictures: lines of pictures, each with a heading.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text(encoding="utf-8"))
    tables = [
        (group, [line for row in rows if row.group == group for line in results.cells(row)])
        for group in dict.fromkeys(row.group for row in rows)
    ]
    shown = [
        (heading, [{"title": each.title, "caption": each.caption, "data": _inlined(each.file)} for each in line])
        for heading, line in pictures
    ]
    context: dict[str, Any] = {
        "title": title,
        "about": about,
        "machine": machine.line(),
        "head": results.HEAD,
        "tables": tables,
        "charts": [_data("image/png", chart.read_bytes()) for chart in charts],
        "pictures": shown,
    }
    return template.render(context)


def _inlined(file: Path) -> str:
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
