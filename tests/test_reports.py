"""The HTML reports in a browser: nothing is cut off or scrolls sideways, on a desk and on a telephone, light and dark."""

import html
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mflux_teacache_plugin.cli import main
from mflux_teacache_plugin.measure import runs
from mflux_teacache_plugin.measure.runs import Command
from tests import pretended

BROWSER = Path("/usr/bin/chromium")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1800,1000"
)
PROMPT = 'a "quoted" lighthouse at dusk, it\'s an oil painting, with a very long description of its light ' * 2

#: Measures the page in a frame of each size: what sticks out, what is cut, and how far text and page are from each other.
MEASURE = """
const frames = [...document.querySelectorAll("iframe")];
const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(Number); return (r * 2 + g * 5 + b) / 8; };
onload = () => {
  document.body.textContent = JSON.stringify(frames.map(frame => {
    const page = frame.contentDocument, root = page.documentElement, body = page.defaultView.getComputedStyle(page.body);
    const every = [...page.body.querySelectorAll("*")], width = root.clientWidth;
    const sizes = every.filter(e => e.childElementCount == 0 && e.textContent.trim() && e.getClientRects().length)
      .map(e => parseFloat(page.defaultView.getComputedStyle(e).fontSize));
    const button = page.querySelector("button");
    if (button) button.click();
    return {
      width, dark: page.defaultView.matchMedia("(prefers-color-scheme: dark)").matches, scrolls: root.scrollWidth > width,
      out: every.filter(e => e.getBoundingClientRect().right > width + 1).map(e => e.outerHTML.slice(0, 80)),
      cut: every.filter(e => e.scrollWidth > e.clientWidth + 1 && e.clientWidth).map(e => e.outerHTML.slice(0, 80)),
      smallest: Math.min(...sizes), page: light(body.backgroundColor), text: light(body.color),
      copied: button ? [page.getSelection().toString(), button.textContent] : null,
      broken: [...page.images].filter(i => !i.naturalWidth).length,
    };
  }));
};
"""


def measured(page: Path, folder: Path) -> list[dict]:
    """What a browser makes of a page, light and dark, at 1280 and at 390 pixels."""
    inner = html.escape(page.read_text(encoding="utf-8"))
    frames = "".join(
        f'<iframe width="{width}" height="900" style="border: 0; color-scheme: {scheme}" srcdoc="{inner}"></iframe>'
        for scheme in ("light", "dark")
        for width in (1280, 390)
    )
    outer = folder / "frames.html"
    outer.write_text(f"<!doctype html><body>{frames}<script>{MEASURE}</script>", encoding="utf-8")
    words = [str(BROWSER), *OPTIONS.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom", outer.as_uri()]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    found = re.search(r"<body>(\[.*\])</body>", done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(params=["compare", "bench"], scope="module")
def report(request, tmp_path_factory) -> tuple[Path, list[str]]:
    """A page, and the words of its first command."""
    folder = tmp_path_factory.mktemp("report")
    out = folder / "out"
    settings = ["0.1", "0.3", "dualcache:f=8,b=0,rdt=0.08,warmup=8"]
    words = ["mflux-generate", "--model", "dev", "--prompt", PROMPT.strip(), "--steps", "10"]
    if request.param == "compare":
        argv = ["compare", "--settings", *settings, "--out", str(out), "--", *words]
    else:
        suite = folder / "suite.toml"
        lists = f"prompts = {json.dumps([PROMPT])}\nseeds = [1, 2]\nsettings = {json.dumps(settings)}\n"
        recipe = (
            '[[recipes]]\ncommand = "mflux-generate"\nmodels = ["dev"]\nsteps = [10]\nquantizations = ["none", 4]\n'
        )
        suite.write_text(f'title = "A test"\n{lists}repetitions = 1\nwarm_up = 0\n{recipe}')
        argv = ["bench", str(suite), "--out", str(out)]
        words = ["mflux-generate", "--model", "dev", "--prompt", PROMPT.strip(), "--seed", "1", "--steps", "10"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "picture", pretended.picture)
        patch.setattr(runs, "check", pretended.check)
        assert main(argv) == 0
    return out / "report.html", words


@pytest.mark.skipif(not BROWSER.exists(), reason=f"there is no {BROWSER}")
def test_a_report_fits_a_desk_and_a_telephone(report: tuple[Path, list[str]], tmp_path: Path) -> None:
    fits(*report, tmp_path)


@pytest.mark.skipif(not BROWSER.exists(), reason=f"there is no {BROWSER}")
def test_so_does_a_contact_sheet(tmp_path: Path) -> None:
    from mflux_teacache_plugin.measure import report

    words = ["mflux-generate", "--model", "dev", "--prompt", PROMPT.strip(), "--steps", "10"]
    tiles = []
    for seed in range(8):
        command, file = Command(words[0], (*words[1:], "--seed", str(seed))), tmp_path / f"{seed}.png"
        pretended.picture(command, "off", file)
        tiles.append(report.Tile(f"seed {seed}", file, "3 steps computed, 1.0 s", command=str(command)))
    report.contact(PROMPT, "Drafts: 3x.", tiles, tmp_path)
    fits(tmp_path / "sheet.html", words, tmp_path)


def fits(page: Path, words: list[str], tmp_path: Path) -> None:
    """Nothing is cut, all can be read, and the first button copies the command that begins with these words."""
    frames = measured(page, tmp_path)
    assert [found["dark"] for found in frames] == [False, False, True, True]
    for found in frames:
        where = f"at {found['width']} pixels, {'dark' if found['dark'] else 'light'}"
        assert (found["out"], found["cut"], found["scrolls"]) == ([], [], False), where
        assert found["smallest"] >= 12, where
        assert found["broken"] == 0, where
        paper, ink = sorted((found["page"], found["text"]), reverse=not found["dark"])
        assert (paper, ink) == (found["page"], found["text"]) and abs(paper - ink) > 150, where
        command, button = found["copied"]
        assert button == "Copied" and shlex.split(command)[: len(words)] == words


def test_the_command_on_a_report_is_one_that_a_shell_takes(report: tuple[Path, list[str]]) -> None:
    page, words = report
    (command, *_) = re.findall(r"<pre>(.*?)</pre>", page.read_text(encoding="utf-8"), re.DOTALL)
    pasted = shlex.split(html.unescape(command))
    assert pasted[: len(words)] == words


def test_advice_comes_first(report: tuple[Path, list[str]]) -> None:
    text = report[0].read_text(encoding="utf-8")
    assert re.findall(r"<th>(.*?)</th>", text)[:2] == ["SETTING", "ADVICE"]
    assert text.index('class="verdict"') < text.index("<table>") < text.index("<img")
