"""The coefficient file format, the search path, and matching a model to its variant."""

import dataclasses
import datetime
import itertools
import json
import math
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mflux_teacache_plugin.errors import TeaCacheError, UnsupportedModelError, VariantFileError
from mflux_teacache_plugin.variants import Guard, Profile, Provenance, StepList, Variant, read_variant
from mflux_teacache_plugin.variants import catalog as catalog_module
from mflux_teacache_plugin.variants.catalog import Catalog, Entry, ModelIdentity, load_catalog

GOOD = {
    "schema": 1,
    "id": "mine",
    "adapter": "flux1",
    "models": ["me/my-finetune"],
    "polynomial": [0.0, 0.0, 0.0, 1.0, 0.0],
    "threshold": 0.2,
    "weights_licence": "Apache-2.0",
    "provenance": {"source": "made up for a test"},
}

PROFILE = {"sigma": [1, 0.5, 0], "change": [0, 1, 2]}


def to_toml(table: dict) -> str:
    """A table as TOML text: everything inline, which is all that a test needs."""

    def value(v: object) -> str:
        if isinstance(v, dict):
            return "{" + ", ".join(f"{text(k)} = {value(item)}" for k, item in v.items()) + "}"
        if isinstance(v, (list, tuple)):
            return "[" + ", ".join(map(value, v)) + "]"
        if isinstance(v, bool):
            return str(v).lower()
        if isinstance(v, str):
            return text(v)
        if isinstance(v, (datetime.date, datetime.time)):
            return v.isoformat()
        return hex(v) if isinstance(v, int) and v > 2**64 else repr(v)

    def text(v: str) -> str:
        return json.dumps(v, ensure_ascii=False).replace("\x7f", "\\u007f")

    return "".join(f"{text(k)} = {value(v)}\n" for k, v in table.items())


def write(folder: Path, **changes: object) -> Path:
    """A good file with some keys changed; None removes a key. It is named after its id."""
    table = {key: value for key, value in (GOOD | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.get('id', 'mine')}.toml"
    path.write_text(to_toml(table), encoding="utf-8")
    return path


def variant(**changes: object) -> Variant:
    return Variant(**{key: value for key, value in (GOOD | changes).items() if key != "schema"})


# ---- one file --------------------------------------------------------------------------------------------------------


def test_defaults(tmp_path: Path) -> None:
    path = write(tmp_path)
    found = read_variant(path)
    assert found == variant()
    assert (found.related, found.range, found.guard, found.distilled) == ((), None, Guard(), False)
    assert (found.profile, found.step_lists, found.recommended) == (None, (), None)
    assert found.provenance == Provenance(source="made up for a test")
    assert found.path == path


def test_all_keys(tmp_path: Path) -> None:
    everything = {
        "related": ["me/sibling"],
        "range": [0, 1],
        "guard": {"first": 2},
        "distilled": True,
        "recommended": " 2x+linear ",
        "profile": {"sigma": [1, 0.5, 0], "change": [0, 0.4, 0.4], "guidance": 4},
        "step_lists": [{"steps": 8, "computed": "0-2, 5,7", "source": " s "}, {"steps": 3, "computed": [0, 2]}],
        "provenance": {
            "source": " a paper ",
            "recipe": "r",
            "date": datetime.date(2026, 1, 31),
            "r2": -496,
            "fitted": True,
            "notes": "n",
        },
    }
    found = read_variant(write(tmp_path, **everything))
    assert (found.related, found.range, found.guard) == (("me/sibling",), (0.0, 1.0), Guard(first=2, last=1))
    assert (found.distilled, found.recommended) == (True, "2x+linear")
    assert found.profile == Profile(sigma=(1.0, 0.5, 0.0), change=(0.0, 0.4, 0.4), guidance=4.0)
    assert found.step_lists == (
        StepList(steps=8, computed=(0, 1, 2, 5, 7), source="s"),
        StepList(steps=3, computed=(0, 2)),
    )
    assert found.provenance == Provenance(
        source="a paper", recipe="r", date="2026-01-31", r2=-496.0, fitted=True, notes="n"
    )
    assert all(isinstance(number, float) for number in (*found.polynomial, *found.range, found.provenance.r2))


def test_a_file_may_have_only_a_profile(tmp_path: Path) -> None:
    profile = {"sigma": [1.0, 0.1], "change": [0.0, 2.0]}
    found = read_variant(write(tmp_path, polynomial=None, threshold=None, profile=profile))
    assert (found.polynomial, found.threshold) == (None, None)
    assert found.profile == Profile(sigma=(1.0, 0.1), change=(0.0, 2.0))


BAD_VALUES = [
    ({"schema": None}, "schema: missing; write schema = 1"),
    ({"schema": "1"}, 'schema: expected 1, got "1" (string); write schema = 1'),
    ({"schema": True}, "schema: expected 1, got true (boolean); write schema = 1"),
    ({"schema": 0}, "schema: expected 1, got 0 (integer); write schema = 1"),
    ({"id": "Mine"}, "id: not a usable id: \"Mine\" (string); use lower-case letters, digits, '.' and '-'"),
    ({"id": "-mine"}, "id: not a usable id"),
    ({"id": None}, 'id: missing; add id = "my-finetune"'),
    ({"adapter": None}, 'adapter: missing; add adapter = "flux1"'),
    ({"adapter": 1}, "adapter: expected text, got 1 (integer); write it in quotes"),
    ({"adapter": " "}, 'adapter: expected text, got " " (string)'),
    ({"models": None}, 'models: missing; add models = ["me/my-finetune"]'),
    ({"models": []}, "models: expected a list of names, got array of 0"),
    ({"models": "me/x"}, 'models: expected a list of names, got "me/x" (string); write models = ["me/my-finetune"]'),
    ({"models": ["me/x", 2]}, "models[1]: expected text, got 2 (integer)"),
    ({"related": {"a": 1}}, "related: expected a list of names, got table of 1"),
    ({"polynomial": None}, "polynomial: missing, though there is a threshold; give both or neither"),
    ({"polynomial": [1.0, 2.0]}, "polynomial: expected 5 numbers, got array of 2; give the coefficients of x^4, x^3"),
    ({"polynomial": 1.0}, "polynomial: expected 5 numbers, got 1.0 (number)"),
    (
        {"polynomial": [0, 0, "1e-3", 0, 0]},
        'polynomial[2]: expected a number, got "1e-3" (string); write a plain number',
    ),
    ({"polynomial": [0, 0, 0, True, 0]}, "polynomial[3]: expected a number, got true (boolean)"),
    (
        {"polynomial": [math.nan, 0, 0, 0, 0]},
        "polynomial[0]: expected a finite number, got nan (number); repeat the fit",
    ),
    ({"polynomial": [0, 0, 0, 0, -math.inf]}, "polynomial[4]: expected a finite number, got -inf (number)"),
    ({"polynomial": [16**5000, 0, 0, 0, 0]}, "polynomial[0]: expected a finite number, got a very large integer"),
    ({"range": [0.1]}, "range: expected 2 numbers, got array of 1; give the lowest and the highest signal change"),
    ({"range": [0.2, 0.1]}, "range: expected 0 <= low < high, got [0.2, 0.1]; write the lower end first"),
    ({"range": [0.1, 0.1]}, "range: expected 0 <= low < high"),
    ({"range": [-0.1, 0.1]}, "range: expected 0 <= low < high"),
    ({"range": [0.1, math.inf]}, "range[1]: expected a finite number, got inf (number)"),
    ({"threshold": None}, "threshold: missing, though there is a polynomial; give both or neither"),
    ({"threshold": 0}, "threshold: 0.0 is outside 0 < threshold <= 2; most models want 0.1 to 0.4"),
    ({"threshold": -0.1}, "threshold: -0.1 is outside"),
    ({"threshold": 2.01}, "threshold: 2.01 is outside"),
    ({"threshold": math.nan}, "threshold: expected a finite number, got nan (number)"),
    ({"threshold": "0.2"}, 'threshold: expected a number, got "0.2" (string)'),
    ({"threshold": datetime.date(2026, 1, 1)}, "threshold: expected a number, got datetime.date(2026, 1, 1) (date)"),
    ({"guard": [1, 1]}, "guard: expected a table, got array of 2; write its keys in a section [guard]"),
    ({"guard": {"first": 0}}, "guard.first: expected a whole number of steps, at least 1, got 0 (integer); write 1"),
    ({"guard": {"last": 1.0}}, "guard.last: expected a whole number of steps, at least 1, got 1.0 (number)"),
    ({"guard": {"last": True}}, "guard.last: expected a whole number of steps"),
    ({"guard": {"frist": 1}}, "guard.frist: unknown key; did you mean first?"),
    ({"guard": {"last": 16**5000}}, "guard.last: expected a whole number of steps, at most 9999, got a very large"),
    ({"distilled": 1}, "distilled: expected true or false, got 1 (integer); write it without quotes"),
    ({"recommended": ""}, 'recommended: expected text, got "" (string)'),
    ({"recommended": 2}, "recommended: expected text, got 2 (integer)"),
    ({"profile": [1, 2]}, "profile: expected a table, got array of 2; write its keys in a section [profile]"),
    ({"profile": {"sigma": [1, 0]}}, "profile.change: missing; add change = [0.0, 0.4, 0.9, 1.8]"),
    ({"profile": {"change": [0, 1]}}, "profile.sigma: missing; add sigma = [1.0, 0.9, 0.5, 0.02]"),
    ({"profile": {**PROFILE, "sigma": "1"}}, 'profile.sigma: expected a list of numbers, got "1" (string); give the σ'),
    ({"profile": {**PROFILE, "sigma": []}}, "profile.sigma: expected a list of numbers, got array of 0"),
    ({"profile": {"sigma": [1], "change": [0]}}, "profile.sigma: expected at least two numbers between 0 and 1"),
    ({"profile": {**PROFILE, "sigma": [1, 1, 0]}}, "profile.sigma: expected at least two numbers between 0 and 1 that"),
    ({"profile": {**PROFILE, "sigma": [0, 0.5, 1]}}, "profile.sigma: expected at least two numbers between 0 and 1"),
    ({"profile": {**PROFILE, "sigma": [1.1, 0.5, 0]}}, "profile.sigma: expected at least two numbers between 0 and 1"),
    ({"profile": {**PROFILE, "sigma": [1, "x", 0]}}, 'profile.sigma[1]: expected a number, got "x" (string)'),
    (
        {"profile": {**PROFILE, "change": [0.1, 1, 2]}},
        "profile.change: expected numbers that start at 0 and never fall",
    ),
    ({"profile": {**PROFILE, "change": [0, 2, 1]}}, "profile.change: expected numbers that start at 0 and never fall"),
    ({"profile": {**PROFILE, "change": [0, 1]}}, "profile.change: 2 values for 3 of sigma; give as many of one"),
    ({"profile": {**PROFILE, "sigmas": [1]}}, "profile.sigmas: unknown key; did you mean sigma?"),
    ({"step_lists": {"steps": 5}}, "step_lists: expected an array of tables, got table of 1; write each in a section"),
    ({"step_lists": [5]}, "step_lists[0]: expected a table, got 5 (integer)"),
    ({"step_lists": [{"steps": 5}]}, 'step_lists[0].computed: missing; add computed = "0-10,12,15,49"'),
    (
        {"step_lists": [{"steps": 5, "computed": "0,4"}, {"steps": 5, "computed": "0,3"}]},
        "step_lists[1].computed: goes from 0 to 3; compute the first and the last of 5 steps, 0 and 4",
    ),
    ({"step_lists": [{"steps": 5, "computed": "1,4"}]}, "step_lists[0].computed: goes from 1 to 4; compute the first"),
    *(
        ({"step_lists": [{"steps": 5, "computed": steps}]}, "step_lists[0].computed: expected rising steps, got")
        for steps in ("", "0,,4", "0-", "4-0", "0,2,2,4", "-1,4", "0,x,4", "0-99999999999", [0, 4.0], [4, 0], 4)
    ),
    ({"weights_licence": None}, 'weights_licence: missing; add weights_licence = "Apache-2.0"'),
    ({"weights_license": "MIT"}, "weights_license: unknown key; did you mean weights_licence?"),
    (
        {"zzz": 1},
        "zzz: unknown key; remove it; the keys are id, adapter, models, related, polynomial, range, threshold",
    ),
    ({"path": "x"}, "path: unknown key"),
    ({"provenance": None}, "provenance: missing; add a section [provenance] with source"),
    ({"provenance": "me"}, 'provenance: expected a table, got "me" (string)'),
    ({"provenance": {}}, 'provenance.source: missing; add source = "who published the numbers, or your own run"'),
    ({"provenance": {"source": "x", "r2": "no"}}, 'provenance.r2: expected a number, got "no" (string)'),
    ({"provenance": {"source": "x", "fitted": "yes"}}, "provenance.fitted: expected true or false"),
    ({"provenance": {"source": "x", "date": 2026}}, "provenance.date: expected text, got 2026 (integer)"),
    ({"provenance": {"source": "x", "note": "y"}}, "provenance.note: unknown key; did you mean notes?"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_VALUES, ids=[message[:40] for _, message in BAD_VALUES])
def test_bad_value(tmp_path: Path, changes: dict, message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(VariantFileError) as caught:
        read_variant(path)
    assert caught.value.error == f"{path} is not a usable coefficient file"
    assert caught.value.cause is not None
    assert caught.value.cause.startswith(message)
    assert "\n" not in caught.value.cause  # this one problem, and no other in its wake


@pytest.mark.parametrize(
    ("changes", "message"),
    # unknown and missing arguments are Python's own TypeError
    [
        (changes, message)
        for changes, message in BAD_VALUES
        if not {"schema", "zzz", "weights_license", "path"} & changes.keys() and None not in changes.values()
    ],
)
def test_a_variant_made_in_python_gets_the_same_checks(changes: dict, message: str) -> None:
    with pytest.raises(VariantFileError) as caught:
        variant(**changes)
    assert caught.value.cause is not None
    assert caught.value.cause.startswith(message)


def test_all_problems_of_a_file_in_one_error(tmp_path: Path) -> None:
    path = write(
        tmp_path, polynomial=[0, math.nan, 0, "1", 0], threshold=3, thresh=0.1, provenance={"fitted": 1}, models=None
    )
    with pytest.raises(VariantFileError) as caught:
        read_variant(path)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[2:-1]] == [
        "         models",
        "         polynomial[1]",
        "         polynomial[3]",
        "         threshold",
        "         provenance.source",
        "         provenance.fitted",
    ]
    assert str(caught.value).splitlines()[1] == "  cause: thresh: unknown key; did you mean threshold?"


def test_the_id_is_the_name_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path).rename(tmp_path / "other.toml")
    with pytest.raises(VariantFileError, match='id: "mine" is not the name of the file; rename the file or change'):
        read_variant(path)


def test_a_newer_schema_says_upgrade_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, schema=2, polynomial="of a kind yet unknown", future=True)
    with pytest.raises(VariantFileError) as caught:
        read_variant(path)
    assert str(caught.value) == (
        f"error: {path} was made for a newer version of mflux-teacache-plugin\n"
        "  cause: it says schema = 2 (integer); this version reads schema 1\n"
        "  hint: upgrade: pip install --upgrade mflux-teacache-plugin"
    )


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"schema = 1\nid = mine\n", "(at line 2, column 6)"),
        (b"schema = 1\nschema = 1\n", "Cannot overwrite a value (at line 2"),
        (b'id = "\xff"', "can't decode byte 0xff"),
        (b"a = " + b"[" * 100_000, ""),
        (b"a = " + b"1" * 5_000, ""),
    ],
)
def test_not_toml(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(VariantFileError, match=r"mine\.toml is not valid TOML") as caught:
        read_variant(path)
    assert caught.value.cause is not None
    assert cause in caught.value.cause


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert read_variant(path).id == "mine"


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    path = write(tmp_path)
    with path.open("a") as file:
        file.write("#" * 4_000_000)
    with pytest.raises(VariantFileError, match="is too long\n  cause: more than 4 million characters"):
        read_variant(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(VariantFileError, match="cannot be read"):
            read_variant(path)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
numbers = st.floats(allow_nan=False, allow_infinity=False)
optional_names = st.none() | names
rising_steps = st.sets(st.integers(1, 50), max_size=9)


def a_profile(sigmas: set[float], changes: list[float]) -> Profile:
    points = min(len(sigmas), len(changes) + 1)
    return Profile(sigma=sorted(sigmas, reverse=True)[:points], change=[0.0, *sorted(changes)][:points])


profiles = st.builds(
    a_profile,
    st.sets(st.floats(0, 1), min_size=2, max_size=9),
    st.lists(st.floats(0, 99), min_size=1, max_size=8),
)
step_lists = st.builds(lambda some: StepList(steps=52, computed=(0, *sorted(some), 51)), rising_steps)
thresholds = {
    "polynomial": st.lists(numbers, min_size=5, max_size=5),
    "threshold": st.floats(0, 2, exclude_min=True),
}
variants = st.builds(
    Variant,
    id=st.from_regex(r"[a-z0-9][a-z0-9.-]{0,30}", fullmatch=True),
    adapter=names,
    models=st.lists(names, min_size=1),
    related=st.lists(names),
    range=st.none() | st.lists(st.floats(0, 1e300), min_size=2, max_size=2, unique=True).map(sorted),
    profile=st.none() | profiles,
    step_lists=st.lists(step_lists, max_size=2),
    recommended=optional_names,
    guard=st.builds(Guard, first=st.integers(1, 99), last=st.integers(1, 99)),
    distilled=st.booleans(),
    weights_licence=names,
    provenance=st.builds(
        Provenance,
        source=names,
        recipe=optional_names,
        date=optional_names,
        r2=st.none() | numbers,
        fitted=st.booleans(),
        notes=optional_names,
    ),
    **thresholds,
)
variants |= variants.map(lambda made: made.replace(polynomial=None, threshold=None))
tmp_is_rewritten = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@tmp_is_rewritten
@given(made=variants)
def test_a_variant_survives_its_file(tmp_path: Path, made: Variant) -> None:
    def without_none(table: dict) -> dict:
        return {k: kept(v) for k, v in table.items() if v not in (None, ())}

    def kept(value: object) -> object:
        if isinstance(value, tuple) and isinstance(value[0], dict):
            return [without_none(each) for each in value]
        return without_none(value) if isinstance(value, dict) else value

    path = tmp_path / f"{made.id}.toml"
    path.write_text(to_toml({"schema": 1} | without_none(dataclasses.asdict(made))), encoding="utf-8")
    read = read_variant(path)
    assert read == made
    assert read.digest == made.digest


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.dates()
    | st.times().map(lambda time: time.replace(tzinfo=None)),
    lambda inner: (
        st.lists(inner.filter(lambda v: v is not None), max_size=6)
        | st.dictionaries(st.text("abcfirstlourcen", max_size=6), inner.filter(lambda v: v is not None), max_size=4)
    ),
    max_leaves=8,
)


@tmp_is_rewritten
@given(changes=st.dictionaries(st.sampled_from(sorted(GOOD)) | st.text(st.characters(exclude_categories=["Cs"])), junk))
def test_junk_gives_an_error_that_names_the_file_or_a_variant(tmp_path: Path, changes: dict) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(to_toml({k: v for k, v in (GOOD | changes).items() if v is not None}), encoding="utf-8")
    tomllib.loads(path.read_text(encoding="utf-8"))  # it is junk, but it is TOML
    try:
        assert isinstance(read_variant(path), Variant)
    except VariantFileError as error:
        assert str(path) in str(error)


@tmp_is_rewritten
@given(content=st.binary() | st.text().map(lambda text: text.encode("utf-8", "replace")))
def test_junk_bytes_give_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(VariantFileError, match=r"mine\.toml"):
        read_variant(path)


def test_replace_checks_and_the_digest_follows_the_numbers_that_decide() -> None:
    made = variant(range=[0.1, 0.2])
    with pytest.raises(VariantFileError, match=r"threshold: 3\.0 is outside"):
        made.replace(threshold=3)
    changed = [
        made.replace(threshold=0.3),
        made.replace(polynomial=[0, 0, 0, 1, 0.1]),
        made.replace(range=None),
        made.replace(guard=Guard(first=2)),
        made.replace(profile=Profile(sigma=(1, 0), change=(0, 1))),
        made.replace(profile=Profile(sigma=(1, 0), change=(0, 2))),
        made.replace(step_lists=[StepList(steps=3, computed=(0, 2))]),
    ]
    assert len({each.digest for each in [made, *changed]}) == len(changed) + 1
    assert made.replace(id="other", models=["a"], distilled=True, recommended="2x").digest == made.digest
    assert made.replace(polynomial=[-0.0, 0, 0, 1, 0]).digest == made.digest
    said = made.replace(step_lists=[StepList(steps=3, computed=(0, 2), source="me")])
    assert said.digest == changed[-1].digest


def test_the_error_indents_what_has_several_lines() -> None:
    error = TeaCacheError("it failed", cause="one\ntwo", hint="mend it")
    assert str(error) == "error: it failed\n  cause: one\n         two\n  hint: mend it"
    assert str(TeaCacheError("it failed")) == "error: it failed"


# ---- the search path -------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """An empty folder per origin, in place of the real ones."""
    monkeypatch.delenv("MFLUX_TEACACHE_COEFFICIENTS", raising=False)
    monkeypatch.setattr(catalog_module.platformdirs, "user_config_path", lambda name: tmp_path / "config" / name)
    monkeypatch.setattr(catalog_module, "packaged_folder", lambda: tmp_path / "package")
    write(tmp_path / "package", id="packaged")
    return {
        "option": tmp_path / "option",
        "environment": tmp_path / "environment",
        "user": tmp_path / "config" / "mflux" / "teacache",
        "plugin": tmp_path / "plugin",
        "package": tmp_path / "package",
    }


def test_the_first_origin_wins_and_hides_the_others(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(folders)
    for origin, folder in folders.items():
        write(folder, adapter=origin)
    monkeypatch.setenv("MFLUX_TEACACHE_COEFFICIENTS", str(folders["environment"]))
    while expected:
        found = load_catalog(
            folders["option"] if "option" in expected else None, [folders["plugin"]] if "plugin" in expected else []
        )
        seen = [found.variants["mine"], *found.shadowed.get("mine", [])]
        assert [entry.origin for entry in seen] == [entry.variant.adapter for entry in seen] == expected
        assert [entry.variant.path for entry in seen] == [folders[origin] / "mine.toml" for origin in expected]
        assert found.variants["packaged"].origin == "package"
        assert found.user_folder == folders["user"]
        gone = expected.pop(0)
        (folders[gone] / "mine.toml").unlink()
        if gone == "environment":
            monkeypatch.delenv("MFLUX_TEACACHE_COEFFICIENTS")
    assert "mine" not in load_catalog().variants


def test_the_environment_names_files_and_folders(folders: dict[str, Path], tmp_path: Path) -> None:
    single, folder = write(tmp_path / "a", id="a"), write(tmp_path / "b", id="b").parent
    write(tmp_path / "a", id="not-named")
    environ = {"MFLUX_TEACACHE_COEFFICIENTS": os.pathsep.join([str(single), "", str(folder), str(folder / "b.toml")])}
    found = load_catalog(environ=environ)
    assert sorted(id for id, entry in found.variants.items() if entry.origin == "environment") == ["a", "b"]
    assert found.explicit is None


def test_a_plugin_contributes_variants_and_paths(folders: dict[str, Path]) -> None:
    found = load_catalog(contributed=[variant(id="made"), write(folders["plugin"], id="read")])
    assert found.variants["made"].variant.path is None
    assert {id for id, entry in found.variants.items() if entry.origin == "plugin"} == {"made", "read"}


def test_the_same_id_twice_in_one_origin_names_both_files(folders: dict[str, Path], tmp_path: Path) -> None:
    first, second = write(tmp_path / "1"), write(tmp_path / "2")
    with pytest.raises(VariantFileError, match='the id "mine" is there twice') as caught:
        load_catalog(environ={"MFLUX_TEACACHE_COEFFICIENTS": f"{first}{os.pathsep}{second}"})
    assert caught.value.cause == f"{first}\n{second}"
    with pytest.raises(VariantFileError, match="made in Python by a plugin"):
        load_catalog(contributed=[first, variant()])


@pytest.mark.parametrize("origin", ["option", "environment", "user", "plugin", "package"])
def test_a_broken_file_is_an_error_whatever_comes_after(folders: dict[str, Path], origin: str) -> None:
    write(folders["package"])
    broken = write(folders[origin], threshold=9)

    def load(strict: bool) -> Catalog:
        return load_catalog(
            broken if origin == "option" else None,
            [broken] if origin == "plugin" else [],
            {"MFLUX_TEACACHE_COEFFICIENTS": str(broken)} if origin == "environment" else {},
            strict=strict,
        )

    with pytest.raises(VariantFileError) as caught:
        load(strict=True)
    assert str(broken) in str(caught.value)
    found = load(strict=False)
    assert [problem.error for problem in found.problems] == [f"{broken} is not a usable coefficient file"]
    assert found.variants["packaged"].origin == "package"


def test_several_broken_files_in_one_error(folders: dict[str, Path]) -> None:
    broken = [write(folders["user"], threshold=9), write(folders["package"], id="a", recommended=1)]
    with pytest.raises(VariantFileError, match="2 problems with coefficient files") as caught:
        load_catalog()
    for path, line in zip(broken, ("threshold: 9.0 is outside", "recommended: expected text"), strict=True):
        assert f"{path} is not a usable" in str(caught.value)
        assert line in str(caught.value)


@pytest.mark.parametrize("origin", ["option", "environment", "plugin"])
def test_a_path_that_leads_nowhere_is_an_error(folders: dict[str, Path], tmp_path: Path, origin: str) -> None:
    (tmp_path / "empty").mkdir()
    for name, message in (("absent", "cannot be read"), ("empty", "holds no coefficient file")):
        path = tmp_path / name
        with pytest.raises(VariantFileError, match=f"{name} {message}"):
            load_catalog(
                path if origin == "option" else None,
                [path] if origin == "plugin" else [],
                {"MFLUX_TEACACHE_COEFFICIENTS": str(path)} if origin == "environment" else {},
            )


def test_hidden_files_are_left_out(folders: dict[str, Path]) -> None:
    """Editors and macOS leave them beside the real ones."""
    write(folders["user"], id="mine")
    for name in ("._mine.toml", ".#mine.toml"):
        (folders["user"] / name).write_bytes(b"\x00\x05\x16\x07")
    assert "mine" in load_catalog().variants


def test_a_user_folder_may_be_absent_or_empty(folders: dict[str, Path]) -> None:
    assert list(load_catalog().variants) == ["packaged"]
    folders["user"].mkdir(parents=True)
    assert list(load_catalog().variants) == ["packaged"]


# ---- matching --------------------------------------------------------------------------------------------------------

DEV, KREA, FILL = (f"black-forest-labs/FLUX.1-{name}dev" for name in ("", "Krea-", "Fill-"))
KLEIN = "black-forest-labs/FLUX.2-klein-base-4B"
SHIPPED = [
    variant(id="flux1-dev", models=[DEV], related=[FILL, "dev-controlnet-canny"]),
    variant(id="flux1-krea-dev", models=[KREA]),
    variant(id="klein-base", adapter="klein-base", models=[KLEIN]),
]
MINE = variant(id="mine", models=["me/my-finetune"])
MY_CONTROLNET = variant(id="my-controlnet", models=["dev-controlnet-canny"])


def catalog_of(*users: Variant, packaged: list[Variant] = SHIPPED, explicit: Variant | None = None) -> Catalog:
    entries = [*(Entry(each, "user") for each in users), *(Entry(each, "package") for each in packaged)]
    option = None if explicit is None else Entry(explicit, "option")
    return Catalog(Path("unused"), {entry.variant.id: entry for entry in entries}, explicit=option)


MATCHES = [
    # what was loaded, the user's own variants → variant, exact
    ("a name of mflux", ModelIdentity(None, DEV, None, ("dev",)), [], ("flux1-dev", True)),
    ("its repo id", ModelIdentity(DEV, DEV, None, ("dev",)), [], ("flux1-dev", True)),
    ("another name", ModelIdentity(None, KREA, None, ("krea-dev", "dev-krea")), [], ("flux1-krea-dev", True)),
    ("a folder called like the repo", ModelIdentity("/m/flux.1-DEV/", "/m/flux.1-DEV/", DEV), [], ("flux1-dev", True)),
    ("somebody's copy", ModelIdentity("you/FLUX.1-dev", "you/FLUX.1-dev", DEV, ("dev",)), [], ("flux1-dev", False)),
    ("a fine-tune without a file", ModelIdentity("me/x", "me/x", DEV, ("dev",)), [], ("flux1-dev", False)),
    ("a fine-tune by repo", ModelIdentity("me/my-finetune", "me/my-finetune", DEV, ("dev",)), [MINE], ("mine", True)),
    ("the same without source", ModelIdentity(None, "me/my-finetune", DEV, ("dev",)), [MINE], ("mine", True)),
    ("a fine-tune by path", ModelIdentity("~/m/My-Finetune", "~/m/My-Finetune", DEV), [MINE], ("mine", True)),
    ("a path with another base", ModelIdentity("./x", "./x", KREA, ("krea-dev",)), [MINE], ("flux1-krea-dev", False)),
    ("FLUX.2 by path, where mflux keeps its own name", ModelIdentity("./x", KLEIN), [], ("klein-base", False)),
    (
        "a FLUX.2 fine-tune",
        ModelIdentity("me/my-finetune", KLEIN),
        [MINE.replace(adapter="klein-base", related=[KLEIN])],
        ("mine", True),
    ),
    ("Fill", ModelIdentity(None, FILL, None, ("dev-fill",)), [], ("flux1-dev", False)),
    ("Fill, named by a user", ModelIdentity(None, FILL), [MINE.replace(models=["x", FILL])], ("mine", True)),
    (
        "a ControlNet has dev's repo id",
        ModelIdentity(None, DEV, None, ("dev-controlnet-canny",)),
        [],
        ("flux1-dev", False),
    ),
    (
        "its own file",
        ModelIdentity(None, DEV, None, ("dev-controlnet-canny",)),
        [MY_CONTROLNET],
        ("my-controlnet", True),
    ),
    ("a user's word for dev", ModelIdentity(None, DEV, None, ("dev",)), [MINE.replace(models=["dev"])], ("mine", True)),
    ("exact before origin", ModelIdentity(None, DEV), [MINE.replace(related=[DEV])], ("flux1-dev", True)),
    ("origin before wording", ModelIdentity("a/b", "a/b", DEV), [MINE.replace(related=[DEV])], ("mine", False)),
    ("no such model", ModelIdentity("a/b", "a/b", "somebody/else"), [MINE], None),
    ("nothing known", ModelIdentity(None, None), [MINE], None),
]


@pytest.mark.parametrize(
    ("identity", "users", "expected"), [row[1:] for row in MATCHES], ids=[row[0] for row in MATCHES]
)
def test_match(identity: ModelIdentity, users: list[Variant], expected: tuple[str, bool] | None) -> None:
    found = catalog_of(*users).match(identity, {"flux1", "klein-base"})
    assert (found and (found.variant.id, found.exact)) == expected


def test_only_variants_whose_adapter_fits() -> None:
    identity = ModelIdentity(None, DEV)
    assert catalog_of().match(identity, {"klein-base"}) is None
    assert catalog_of().match(identity, ()) is None


def test_models_before_related_and_the_longer_name_within_an_origin() -> None:
    identity = ModelIdentity("a/b", "a/b", DEV, ("dev",))
    by_alias, by_base = variant(id="a", models=["dev"]), variant(id="b", models=[DEV])
    related = variant(id="c", models=["x"], related=[DEV])
    for order in itertools.permutations([by_alias, by_base, related]):
        found = catalog_of(packaged=list(order)).match(identity, {"flux1"})
        assert found is not None
        assert found.variant.id == "b"
        found = catalog_of(packaged=[each for each in order if each is not by_base]).match(identity, {"flux1"})
        assert found is not None
        assert found.variant.id == "a"


def test_an_owner_and_a_name_are_a_repo_unless_there_is_such_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    identity = ModelIdentity("models/FLUX.1-dev", "models/FLUX.1-dev", DEV)
    before = catalog_of().match(identity, {"flux1"})
    (tmp_path / "models" / "FLUX.1-dev").mkdir(parents=True)
    after = catalog_of().match(identity, {"flux1"})
    assert before is not None and after is not None
    assert (before.exact, after.exact) == (False, True)


def test_the_one_file_of_the_option_is_used_whatever_the_model_is_called(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = write(tmp_path / "here", models=[KREA])
    found = load_catalog(path)
    for identity, exact in ((ModelIdentity(None, DEV), False), (ModelIdentity(None, KREA), True)):
        match = found.match(identity, {"flux1"})
        assert match is not None
        assert (match.variant.id, match.origin, match.exact) == ("mine", "option", exact)
    with pytest.raises(UnsupportedModelError, match="its adapter is flux1; the model works with cfg or klein"):
        found.match(ModelIdentity(None, KREA), {"klein", "cfg"})
    with pytest.raises(UnsupportedModelError, match="mine does not fit this model"):
        catalog_of(explicit=MINE).match(ModelIdentity(None, KREA), {"klein"})
    # a folder only goes first
    folder = load_catalog(path.parent)
    assert folder.explicit is None
    assert folder.match(ModelIdentity(None, DEV), {"flux1"}) is None
