"""Which of options, -C file and environment counts, and what each of them asks for."""

import json
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mflux_teacache_plugin import methods, settings
from mflux_teacache_plugin.errors import ConflictError, SettingsError
from mflux_teacache_plugin.methods.teacache import TeaCache


def sidecar(folder: Path, **keys: object) -> Path:
    path = folder / "image.metadata.json"
    path.write_text(json.dumps(keys))
    return path


def resolve(environment: str | None = None, **args: object) -> settings.Settings | None:
    return settings.resolve(Namespace(**args), {} if environment is None else {"MFLUX_TEACACHE": environment})


# ---- precedence ------------------------------------------------------------------------------------------------------

#: A text of every kind, as it is written in a record.
TEXTS = ("0.2", "2", "1.5x", "dualcache:aggressive", "dualcache:F=2,B=1,rdt=0.1", "seacache:0.3", "2x+quadratic")
ASKED = st.none() | st.sampled_from(["auto", "off", *TEXTS])


def value_of(text: str | None) -> settings.Value | None:
    return None if text is None else methods.parse(text)


@given(option=ASKED, recorded=st.none() | st.sampled_from(TEXTS), environment=ASKED)
def test_the_option_goes_over_the_file_and_the_file_over_the_environment(
    option: str | None, recorded: str | None, environment: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = sidecar(tmp_path_factory.mktemp("sidecar"), steps=4, teacache_method=recorded)
    found = resolve(environment, teacache=value_of(option), teacache_coefficients=None, config_from_metadata=file)
    winner = next((value for value in (option, recorded, environment) if value is not None), "off")
    if winner == "off":
        assert found is None
        return
    assert found is not None
    assert found.method == (None if winner == "auto" else methods.parse(winner))
    origin = "--teacache" if option is not None else f"-C {file}" if recorded is not None else "MFLUX_TEACACHE"
    assert found.origin == origin
    assert found.explicit is (origin != "MFLUX_TEACACHE"), "only the environment asks for everything that can"


@pytest.mark.parametrize("option", ["teacache", "dualcache", "seacache"])
def test_each_option_asks_for_its_method_and_goes_over_the_environment(option: str) -> None:
    method = methods.parse("seacache:0.3")
    found = resolve("0.2", **{option: method})
    assert found == settings.Settings(method, f"--{option}", True)


@pytest.mark.parametrize("pair", [("teacache", "dualcache"), ("teacache", "seacache"), ("dualcache", "seacache")])
def test_two_methods_at_once_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ConflictError) as error:
        resolve(**{option: methods.parse("1.5x") for option in pair})
    assert str(error.value) == f"error: --{pair[0]} and --{pair[1]} are two methods\n  hint: ask for one of them"


def test_a_forecast_goes_over_the_methods_own_and_asks_for_the_cache_by_itself() -> None:
    found = resolve(teacache=methods.parse("2x+quadratic"), teacache_forecast="reuse")
    assert found is not None and found.method == methods.parse("2x+reuse")
    assert resolve(teacache_forecast="linear") == settings.Settings(
        None, "--teacache-forecast", True, forecast="linear"
    )
    assert resolve(teacache="off", teacache_forecast="linear") is None


def test_a_forecast_alone_changes_what_the_file_or_the_environment_asks_for(tmp_path: Path) -> None:
    file = sidecar(tmp_path, teacache_method="2x", teacache_variant="x", teacache_numbers="1", steps=4)
    found = resolve("0.2", teacache_forecast="reuse", config_from_metadata=file)
    assert found is not None and found.explicit
    assert (found.method, found.variant, found.numbers) == (methods.parse("2x+reuse"), "x", "1")
    assert found.origin == f"-C {file}", "a note about the recorded numbers names the file"
    assert resolve("0.2", teacache_forecast="linear") == settings.Settings(
        methods.parse("0.2+linear"), "MFLUX_TEACACHE", False, forecast="linear"
    ), "what the environment asks for stays a wish: the option only says how"


def test_nothing_and_an_empty_variable_ask_for_nothing() -> None:
    assert resolve() is None
    assert resolve("") is None
    assert settings.resolve(None, {}) is None


def test_a_coefficient_file_asks_for_the_cache() -> None:
    found = resolve("off", teacache=None, teacache_coefficients=Path("mine.toml"))
    assert found == settings.Settings(None, "--teacache-coefficients", True, coefficients=Path("mine.toml"))
    assert resolve(teacache="off", teacache_coefficients=Path("mine.toml")) is None


def test_python_scripts_have_the_environment_only() -> None:
    assert settings.resolve(None, {"MFLUX_TEACACHE": "0.3"}) == settings.Settings(
        TeaCache(0.3), "MFLUX_TEACACHE", False
    )


@pytest.mark.parametrize("text", ["0", "-1", "3", "nan", "abc", "on", "1e999", "1x", "dualcache:F=0"])
def test_a_bad_environment_names_the_variable_and_the_mend(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(text)
    assert str(error.value).startswith(f"error: MFLUX_TEACACHE: '{text}'")
    assert "set MFLUX_TEACACHE=auto, or unset it" in str(error.value)


# ---- the -C file -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_the_file_repeats_method_variant_numbers_and_coefficients(text: str, tmp_path: Path) -> None:
    keys = {"method": text, "variant": "flux1-dev", "numbers": "0123456789ab", "coefficients": "/some/mine.toml"}
    file = sidecar(tmp_path, **{f"teacache_{key}": value for key, value in keys.items()})
    found = resolve(config_from_metadata=file)
    assert found == settings.Settings(
        methods.parse(text),
        f"-C {file}",
        True,
        coefficients=Path("/some/mine.toml"),
        variant="flux1-dev",
        numbers="0123456789ab",
    )


def test_a_file_of_a_run_without_a_variant_asks_for_none(tmp_path: Path) -> None:
    found = resolve(config_from_metadata=sidecar(tmp_path, teacache_method="1.5x", teacache_variant=""))
    assert found is not None
    assert found.variant == "", "and not for the one that would match by now"


def test_a_file_of_a_plain_run_asks_for_nothing(tmp_path: Path) -> None:
    assert resolve(config_from_metadata=sidecar(tmp_path, steps=4)) is None


def test_a_picture_that_was_plain_is_made_again_plain_whatever_the_environment_asks_for(tmp_path: Path) -> None:
    file = sidecar(tmp_path, steps=4, teacache_method="off")
    assert resolve("2x", config_from_metadata=file) is None
    found = resolve("2x", teacache=methods.parse("0.2"), config_from_metadata=file)
    assert found is not None and found.origin == "--teacache", "an option still goes before the file"
    assert resolve("2x", config_from_metadata=sidecar(tmp_path, steps=4)) is not None, "a file that does not say"


def _names_a_method(text: str) -> bool:
    try:
        methods.parse(text)
    except ArgumentTypeError:
        return False
    return True


NO_TEXT = st.one_of(
    st.booleans(),
    st.floats(),
    st.integers(),
    st.lists(st.floats(0.1, 1), max_size=2),
    st.dictionaries(st.text(), st.integers(), max_size=2),
)


@given(value=NO_TEXT | st.text().filter(lambda text: not _names_a_method(text)))
def test_a_junk_method_in_the_file_names_file_and_key(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = sidecar(tmp_path_factory.mktemp("sidecar"), teacache_method=value)
    with pytest.raises(SettingsError) as error:
        resolve(config_from_metadata=file)
    assert error.value.error.startswith(f"{file}: teacache_method: ")
    if isinstance(value, str):
        assert f"'{value}'" in error.value.error
        assert "--teacache" in str(error.value.hint)


@pytest.mark.parametrize("key", ["teacache_method", "teacache_variant", "teacache_numbers", "teacache_coefficients"])
@pytest.mark.parametrize("value", [3, 0.5, True, ["flux1-dev"], {"id": "flux1-dev"}])
def test_what_is_no_text_in_the_file_names_file_and_key(key: str, value: object, tmp_path: Path) -> None:
    file = sidecar(tmp_path, **{"teacache_method": "0.2", key: value})
    with pytest.raises(SettingsError) as error:
        resolve(config_from_metadata=file)
    assert error.value.error == f"{file}: {key}: {value!r} is not a string"
    assert error.value.hint == f"remove {key} from the file"


def test_the_option_goes_over_a_broken_file(tmp_path: Path) -> None:
    file = sidecar(tmp_path, teacache_method="broken")
    assert resolve(teacache="off", config_from_metadata=file) is None
    found = resolve(teacache=TeaCache(0.4), config_from_metadata=file)
    assert found is not None
    assert found.method == TeaCache(0.4)
