"""Files and texts that somebody wrote, changed at random: what is wrong is told, and nothing ends in a traceback.

FUZZ_EXAMPLES says how many of each are tried; 1,000 by default.
"""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import mflux_demo_model as demo_model
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mflux_teacache_plugin import choose
from mflux_teacache_plugin import settings as asked
from mflux_teacache_plugin.errors import TeaCacheError
from mflux_teacache_plugin.measure import suite
from mflux_teacache_plugin.variants import read_variant

ROOT = Path(__file__).parents[1]

many = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

#: What is written into a text: pieces of TOML and JSON, values of other kinds, and values beyond any limit.
PIECES = [
    *("\n", '"', "'", "[", "]", "[[", "]]", "{", "}", "=", ",", ":", ".", "#", "\\", "\\u0000", "\0", "\ufeff", "\ud7ff", "💥"),
    *("true", "null", '""', "[]", "{}", "-1", "0", "1", "4.0", "1e400", "nan", "-inf", "1979-05-27", "07:32:00", "[[1]]"),
    *("9" * 400, "9" * 5000, f"0x{'f' * 5000}", "[" * 9000, "a." * 3000, "9" * 400 + ".5", "\nschema = 2\n"),
    *("auto", "off", "0.2", "2x", "1e999x", "nanx", "infx", "x", "+", "+linear", "dualcache:", "F=9,B=-1", "seacache:0"),
]  # fmt: skip


def changed(texts: list[str]) -> st.SearchStrategy[bytes]:
    """One of the texts after a few cuts, doublings and insertions."""
    place = st.floats(0, 1, exclude_max=True)
    length = st.integers(0, 40)
    change = st.tuples(st.sampled_from(["cut", "double", "insert", "replace"]), place, length, st.sampled_from(PIECES))

    def apply(text: str, changes: list[tuple[str, float, int, str]], tail: bytes) -> bytes:
        for what, where, size, piece in changes:
            at = int(where * len(text))
            part = text[at : at + size]
            new = {"cut": "", "double": part * 2, "insert": piece + part, "replace": piece}[what]
            text = text[:at] + new + text[at + size :]
        return text.encode() + tail

    return st.builds(apply, st.sampled_from(texts), st.lists(change, max_size=4), st.sampled_from([b"", b"", b"\xff"]))


def told(read: Callable[[], object], *names: str) -> None:
    """Read; if that fails, it is with an error of ours that names these."""
    try:
        read()
    except TeaCacheError as error:
        assert all(name in str(error) for name in names), str(error)
        assert str(error).startswith("error: ")


COEFFICIENTS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "coefficients").glob("*.toml"))]
SUITES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "benchmarks" / "suites").glob("*.toml"))]
PROMPTS = [(ROOT / "examples" / "demo_model" / demo_model.NAME / "prompts.toml").read_text(encoding="utf-8")]
SIDECARS = [
    json.dumps({"prompt": "x", "steps": 25, "teacache_method": method, "teacache_variant": id, "teacache_numbers": "0" * 12})
    for method, id in (("0.2", "flux1-dev"), ("1.5x+reuse", ""), ("dualcache:F=8,B=0,rdt=0.08", "flux1-dev"), ("off", "x"))
]  # fmt: skip
SETTINGS = [
    "auto",
    "off",
    "0.2",
    "1.5x",
    "2x+reuse",
    "dualcache:F=8,B=0,rdt=0.08,M=8",
    "dualcache:aggressive",
    "seacache:0.3",
]


@many
@given(content=changed(COEFFICIENTS))
def test_coefficient_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flux1-dev.toml"
    path.write_bytes(content)

    def read() -> None:
        variant = read_variant(path)
        assert len(variant.digest) == 12
        choose.recommended(variant)

    told(read, str(path))


@many
@given(content=changed(SUITES))
@example(content=SUITES[1].replace("[25]", "[0xffff]").encode())
@example(content=SUITES[1].replace("[25]", f"[0x{'f' * 5000}]").encode())
@example(content=SUITES[1].replace("steps =", "quantizations = [4.0]\nsteps =").encode())
def test_suites(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "suite.toml"
    path.write_bytes(content)
    told(lambda: suite.read(path), str(path))


@many
@given(content=changed(PROMPTS), purpose=st.sampled_from(["demo", "benchmark", "calibration"]))
def test_prompts(tmp_path: Path, content: bytes, purpose: str) -> None:
    (tmp_path / "model.json").touch()
    (tmp_path / "prompts.toml").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(demo_model.ENVIRONMENT, str(tmp_path))
        told(lambda: demo_model.prompts(purpose), str(tmp_path / "prompts.toml"))


@many
@given(content=changed(SIDECARS))
def test_sidecars(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.metadata.json"
    path.write_bytes(content)
    try:
        if not isinstance(json.loads(path.read_text()), dict):
            return
    except (ValueError, RecursionError):  # mflux reads it first, and refuses it
        return
    told(lambda: asked.resolve(Namespace(config_from_metadata=path), {}, choose.parse), str(path))


@many
@given(text=changed(SETTINGS).map(lambda content: content.decode(errors="replace")))
def test_texts_of_the_environment(text: str) -> None:
    told(lambda: asked.resolve(None, {asked.ENVIRONMENT: text}, choose.parse), asked.ENVIRONMENT)
