"""What was asked for: the values of the option, and which of option, -C file and environment counts."""

import json
import math
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin import settings
from mflux_teacache_plugin.errors import SettingsError

NUMBERS = st.one_of(st.floats(), st.integers(), st.floats(min_value=-1, max_value=3)).map(str)


def sidecar(folder: Path, **keys: object) -> Path:
    path = folder / "image.metadata.json"
    path.write_text(json.dumps(keys))
    return path


def resolve(environment: str | None = None, **args: object) -> settings.Settings | None:
    return settings.resolve(Namespace(**args), {} if environment is None else {"MFLUX_TEACACHE": environment})


# ---- the value -------------------------------------------------------------------------------------------------------


@given(st.one_of(st.text(), NUMBERS))
def test_any_text_is_a_usable_value_or_an_error_that_quotes_it(text: str) -> None:
    try:
        value = settings.threshold(text)
    except ArgumentTypeError as error:
        assert text in str(error)
    else:
        assert value == text if text in ("auto", "off") else 0 < value <= 2


@given(st.floats(min_value=0, max_value=2, exclude_min=True))
def test_every_number_of_the_range_is_taken_as_it_is(value: float) -> None:
    assert settings.threshold(repr(value)) == value


@given(st.floats().filter(lambda value: not 0 < value <= 2))
def test_no_other_number_is_taken(value: float) -> None:
    with pytest.raises(ArgumentTypeError, match="0.2" if value else "use 'off'"):
        settings.threshold(repr(value))


# ---- precedence ------------------------------------------------------------------------------------------------------

ASKED = st.one_of(st.none(), st.sampled_from(["auto", "off"]), st.floats(0.01, 2))


@given(option=ASKED, recorded=st.none() | st.floats(0.01, 2), environment=ASKED)
def test_the_option_goes_over_the_file_and_the_file_over_the_environment(
    option: object, recorded: float | None, environment: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = sidecar(tmp_path_factory.mktemp("sidecar"), steps=4, teacache_threshold=recorded)
    text = None if environment is None else str(environment)
    found = resolve(text, teacache=option, teacache_coefficients=None, config_from_metadata=file)
    winner = next((value for value in (option, recorded, environment) if value is not None), "off")
    if winner == "off":
        assert found is None
        return
    assert found is not None
    assert found.threshold == (None if winner == "auto" else pytest.approx(winner))
    origin = "--teacache" if option is not None else f"-C {file}" if recorded is not None else "MFLUX_TEACACHE"
    assert found.origin == origin
    assert found.explicit is (origin != "MFLUX_TEACACHE"), "only the environment asks for everything that can"


def test_nothing_and_an_empty_variable_ask_for_nothing() -> None:
    assert resolve() is None
    assert resolve("") is None
    assert settings.resolve(None, {}) is None


def test_a_coefficient_file_asks_for_the_cache() -> None:
    found = resolve("off", teacache=None, teacache_coefficients=Path("mine.toml"))
    assert found == settings.Settings(None, "--teacache", True, Path("mine.toml"))
    assert resolve(teacache="off", teacache_coefficients=Path("mine.toml")) is None


def test_python_scripts_have_the_environment_only() -> None:
    assert settings.resolve(None, {"MFLUX_TEACACHE": "0.3"}) == settings.Settings(0.3, "MFLUX_TEACACHE", False)


@pytest.mark.parametrize("text", ["0", "-1", "3", "nan", "abc", "on", "1e999"])
def test_a_bad_environment_names_the_variable_and_the_mend(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(text)
    assert str(error.value).startswith(f"error: MFLUX_TEACACHE: '{text}'")
    assert "set MFLUX_TEACACHE=auto, or unset it" in str(error.value)


# ---- the -C file -----------------------------------------------------------------------------------------------------


def test_the_file_repeats_threshold_variant_numbers_and_coefficients(tmp_path: Path) -> None:
    keys = {"threshold": 0.3, "variant": "flux1-dev", "numbers": "0123456789ab", "coefficients": "/some/mine.toml"}
    file = sidecar(tmp_path, **{f"teacache_{key}": value for key, value in keys.items()})
    found = resolve(config_from_metadata=file)
    assert found == settings.Settings(
        0.3, f"-C {file}", True, Path("/some/mine.toml"), variant="flux1-dev", numbers="0123456789ab"
    )


def test_a_file_of_a_plain_run_asks_for_nothing(tmp_path: Path) -> None:
    assert resolve(config_from_metadata=sidecar(tmp_path, steps=4)) is None


JUNK = st.one_of(
    st.booleans(),
    st.lists(st.floats(0.1, 1), max_size=2),
    st.dictionaries(st.text(), st.integers(), max_size=2),
    st.text().filter(lambda text: text not in ("auto", "off") and not _is_a_threshold(text)),
    st.floats().filter(lambda value: not 0 < value <= 2),
)


def _is_a_threshold(text: str) -> bool:
    try:
        return 0 < float(text) <= 2
    except ValueError:
        return False


@given(value=JUNK)
def test_a_junk_threshold_in_the_file_names_file_and_key(
    value: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = sidecar(tmp_path_factory.mktemp("sidecar"), teacache_threshold=value)
    with pytest.raises(SettingsError) as error:
        resolve(config_from_metadata=file)
    assert error.value.error.startswith(f"{file}: teacache_threshold: ")
    assert "--teacache" in str(error.value.hint)


@pytest.mark.parametrize("key", ["teacache_variant", "teacache_numbers", "teacache_coefficients"])
@pytest.mark.parametrize("value", [3, 0.5, True, ["flux1-dev"], {"id": "flux1-dev"}])
def test_a_junk_text_in_the_file_names_file_and_key(key: str, value: object, tmp_path: Path) -> None:
    file = sidecar(tmp_path, **{"teacache_threshold": 0.2, key: value})
    with pytest.raises(SettingsError) as error:
        resolve(config_from_metadata=file)
    assert error.value.error.startswith(f"{file}: {key}: ")
    assert error.value.hint == f"remove {key} from the file"


def test_the_option_goes_over_a_broken_file(tmp_path: Path) -> None:
    file = sidecar(tmp_path, teacache_threshold="broken")
    assert resolve(teacache="off", config_from_metadata=file) is None
    found = resolve(teacache=0.4, config_from_metadata=file)
    assert found is not None
    assert math.isclose(found.threshold or 0, 0.4)
