"""The coefficient files that ship: their numbers against the published ones, their names against mflux's, their docs."""

import re
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path

import mflux_demo_model as demo_model
import numpy as np
import pytest

from mflux_teacache_plugin.adapters import BUILT_IN
from mflux_teacache_plugin.variants import Guard, Profile, Provenance, StepList, Variant, read_variant
from mflux_teacache_plugin.variants.catalog import ModelIdentity, load_catalog, packaged_folder

DOCS = Path(__file__).parents[1] / "docs" / "coefficient-files.md"
SHIPPED = {path.stem: read_variant(path) for path in sorted(packaged_folder().glob("*.toml"))}

# Written down from the published sources a second time, apart from the files.
FLUX1 = [4.98651651e2, -2.83781631e2, 5.58554382e1, -3.82021401, 2.64230861e-1]
KREA = [24.18037744588824, -45.41912128506917, 26.20213376107934, -3.579234954660995, 0.40140693642366004]
KONTEXT = [-1.04655119e3, 3.12563399e2, -1.69500694e1, 4.10995971e-1, 3.74537863e-2]
KLEIN_4B = [236.9190176127698, -201.47401360106662, 66.91354236854073, -11.14796738073235, 1.2674506310647067]
KLEIN_9B = [-523.8412980807129, 530.2492512302608, -177.64385734082498, 20.893264957040557, 0.0]
KLEIN_BASE = [-1841.022165607874, 848.4417137572868, -131.3554469956159, 8.179509586828413, 0.0]
QWEN = [-12.954226906135869, 8.883805167578382, -0.9363839862290331, 1.4538816050570036, 0.0]
QWEN_2512 = [-13.200421839759947, 4.851407025105924, 2.4891133197469846, 0.2453630032662089, 0.0]
BASE_RANGE = (0.028261402621865273, 0.21984468400478363)

PUBLISHED = {  # id: polynomial, its value at 0.05, 0.1 and 0.2, range, threshold, R²
    "flux1-dev": (FLUX1, [0.180503, 0.206847, 0.261995], None, 0.2, None),
    "flux1-kontext-dev": (KONTEXT, [0.048158, 0.116961, 0.267675], (0.0, 0.24072161649338994), 0.22, None),
    "flux1-krea-dev": (KREA, [0.282424, 0.262504, 0.408981], (0.06265655253122461, 0.662358805642947), 0.3, 0.682),
    "flux1-schnell": (FLUX1, [0.180503, 0.206847, 0.261995], None, 0.2, None),
    "flux2-klein-4b": (KLEIN_4B, [0.853633, 0.644007, 0.481677], (0.2001306414604187, 0.4252921938896179), 0.2, 0.653),
    "flux2-klein-9b": (KLEIN_9B, [0.663561, 0.790753, 0.476747], (0.1315704584121704, 0.44975757598876953), 0.2, 0.471),
    "flux2-klein-base-4b": (KLEIN_BASE, [0.175136, 0.168736, 0.223582], BASE_RANGE, 0.17, 0.106),
    "flux2-klein-base-9b": (KLEIN_BASE, [0.175136, 0.168736, 0.223582], BASE_RANGE, 0.17, None),
    "qwen-image": (QWEN, [0.071383, 0.143613, 0.303665], (0.04675976472922664, 0.587799896108221), 0.3, 0.849),
    "qwen-image-2512": (
        QWEN_2512,
        [0.019015, 0.052959, 0.166328],
        (0.08094493952514002, 0.4705715918534816),
        0.25,
        0.818,
    ),
}

#: Without a polynomial: a profile that this project fitted to traces of others, and published lists.
OTHERS = ("ernie-image", "z-image-base", "z-image-turbo")


@pytest.fixture(scope="module")
def models() -> dict:
    """What the installed mflux knows by each of its names."""
    from mflux.models.common.config.model_config import AVAILABLE_MODELS

    by_name = {}
    for config in AVAILABLE_MODELS.values():
        for name in (config.model_name, *config.aliases):
            by_name.setdefault(name, config)
    return by_name


def lowest(variant: Variant, otherwise: tuple[float, float] = (0.0, 1.0)) -> float:
    """The smallest value of a variant's polynomial over its range."""
    return float(np.polyval(variant.polynomial, np.linspace(*(variant.range or otherwise), 100_001)).min())


def test_the_catalog_ships_exactly_these() -> None:
    found = load_catalog(environ={}, strict=False).variants
    assert {id for id, entry in found.items() if entry.origin == "package"} | set(SHIPPED) == {
        *PUBLISHED,
        *OTHERS,
        demo_model.NAME,
    }


@pytest.mark.parametrize("id", PUBLISHED)
def test_numbers_are_the_published_ones(id: str) -> None:
    polynomial, values, span, threshold, r2 = PUBLISHED[id]
    variant = SHIPPED[id]
    assert variant.polynomial == tuple(polynomial)
    assert np.polyval(variant.polynomial, [0.05, 0.1, 0.2]) == pytest.approx(values, abs=1e-6)
    assert (variant.range, variant.threshold, variant.provenance.r2) == (span, threshold, r2)


def test_borrowed_numbers_say_so() -> None:
    assert {id for id, variant in SHIPPED.items() if not variant.provenance.fitted} == {
        "flux1-schnell",
        "flux2-klein-base-9b",
    }
    for borrower, lender in (("flux2-klein-base-9b", "flux2-klein-base-4b"), ("flux1-schnell", "flux1-dev")):
        both = SHIPPED[borrower], SHIPPED[lender]
        assert len({(each.polynomial, each.range, each.threshold, each.guard) for each in both}) == 1
    assert SHIPPED["flux2-klein-base-9b"].profile == SHIPPED["flux2-klein-base-4b"].profile


def test_what_the_notes_say_of_the_polynomials() -> None:
    assert 0.18 < lowest(SHIPPED["flux1-dev"]) < 0.1804
    assert "nowhere below 0.1803" in SHIPPED["flux1-dev"].provenance.notes
    assert 0.2598 < lowest(SHIPPED["flux1-krea-dev"]) < 0.2599
    assert "nowhere below 0.2598" in SHIPPED["flux1-krea-dev"].provenance.notes
    kontext = SHIPPED["flux1-kontext-dev"]
    assert np.polyval(kontext.polynomial, kontext.range[1]) == pytest.approx(0, abs=1e-12)
    assert np.polyval(kontext.polynomial, kontext.range[1] + 1e-9) < 0
    assert lowest(kontext, (0.0, 0.24)) > -1e-12
    assert kontext.guard == Guard(first=5, last=2)
    assert all(variant.guard == Guard() for id, variant in SHIPPED.items() if id != "flux1-kontext-dev")


@pytest.mark.parametrize("id", ["flux2-klein-4b", "flux2-klein-9b"])
def test_distilled_klein_never_skips_at_its_threshold(id: str) -> None:
    assert lowest(SHIPPED[id]) > SHIPPED[id].threshold


def test_distilled() -> None:
    assert {id for id, variant in SHIPPED.items() if variant.distilled} == {
        "flux1-schnell",
        "flux2-klein-4b",
        "flux2-klein-9b",
    }


@pytest.mark.parametrize("id", [*PUBLISHED, *OTHERS])
def test_mflux_knows_every_name(id: str, models: dict) -> None:
    variant = SHIPPED[id]
    known = {
        *models.keys(),
        "Qwen/Qwen-Image",
    }  # mflux 0.24 takes Qwen-Image for 2512 unless it is named as a repository
    assert set(variant.models) | set(variant.related) <= known
    families = {
        "flux1": "flux1",
        "flux2-klein-base": "klein-base",
        "flux2": "klein",
        "qwen": "qwen-image",
        "z-image": "z-image",
        "ernie": "ernie-image",
    }
    assert variant.adapter == next(adapter for start, adapter in families.items() if id.startswith(start))


def test_every_file_names_an_adapter_that_there_is() -> None:
    assert {variant.adapter for variant in SHIPPED.values()} <= {adapter.id for adapter in BUILT_IN}


def test_profiles_are_there_for_what_has_been_recorded() -> None:
    assert {id for id, variant in SHIPPED.items() if variant.profile is not None and id != demo_model.NAME} == {
        "flux1-krea-dev",
        "flux2-klein-9b",
        "flux2-klein-base-4b",
        "flux2-klein-base-9b",
        "qwen-image",
        "qwen-image-2512",
        "z-image-base",
    }
    borrowed, own = SHIPPED["flux2-klein-base-9b"], SHIPPED["flux2-klein-base-4b"]
    assert borrowed.profile == own.profile


def test_which_of_mflux_s_models_get_which_variant(models: dict) -> None:
    """By mflux's own config, as its commands load it: what is exact, what only resembles, and that no other is served."""
    found = {}
    catalog = load_catalog(environ={}, strict=False)
    for config in {id(config): config for config in models.values()}.values():
        identity = ModelIdentity(None, config.model_name, config.base_model, tuple(config.aliases))
        if match := catalog.match(identity, {"flux1", "klein", "klein-base", "qwen-image", "z-image", "ernie-image"}):
            found[config.aliases[0]] = match.variant.id if match.exact else f"like {match.variant.id}"
    assert found == {
        "dev": "flux1-dev",
        "dev-fill": "like flux1-dev",
        "dev-fill-catvton": "like flux1-dev",
        "dev-depth": "like flux1-dev",
        "dev-redux": "like flux1-dev",
        "dev-controlnet-canny": "like flux1-dev",
        "dev-controlnet-upscaler": "like flux1-dev",
        "schnell": "flux1-schnell",
        "schnell-controlnet-canny": "like flux1-schnell",
        "dev-kontext": "flux1-kontext-dev",
        "krea-dev": "flux1-krea-dev",
        "flux2-klein-4b": "flux2-klein-4b",
        "flux2-klein-9b": "flux2-klein-9b",
        "flux2-klein-9b-kv": "like flux2-klein-9b",
        "flux2-klein-base-4b": "flux2-klein-base-4b",
        "flux2-klein-base-9b": "flux2-klein-base-9b",
        "qwen-image": "qwen-image-2512",
        "z-image": "z-image-base",
        "z-image-turbo": "z-image-turbo",
        "z-image-turbo-controlnet-union-2.1": "z-image-turbo",  # by its name; its own adapter, not here, gets none
        "ernie-image": "ernie-image",
    }


def test_a_custom_checkpoint_as_mflux_resolves_it() -> None:
    from mflux.models.common.config.model_config import ModelConfig
    from mflux.models.common.resolution.config_resolution import ConfigResolution

    catalog = load_catalog(environ={}, strict=False)

    def match(config: ModelConfig, source: str) -> tuple[str, bool]:
        identity = ModelIdentity(source, config.model_name, config.base_model, tuple(config.aliases))
        found = catalog.match(identity, {"flux1", "klein", "klein-base"})
        return found.variant.id, found.exact

    path = "./my-checkpoint"
    assert match(ModelConfig.from_name(path, base_model="dev"), path) == ("flux1-dev", False)
    assert match(ModelConfig.from_name(path, base_model="krea-dev"), path) == ("flux1-krea-dev", False)
    assert match(ModelConfig.from_name("me/my-schnell-4bit"), "me/my-schnell-4bit") == ("flux1-schnell", False)
    family = ("flux2-klein-base-4b",)
    flux2 = ConfigResolution.resolve_restricted(path, "flux2-klein-4b", path, family, "flux2-klein-base-4b")
    assert match(flux2, path) == ("flux2-klein-base-4b", False)
    repo = "black-forest-labs/FLUX.1-dev"  # no registry name for mflux's commands, which pass it on as a path
    assert match(ModelConfig.from_name(repo), repo) == ("flux1-dev", True)


@pytest.mark.parametrize("id", PUBLISHED)
def test_each_file_begins_with_what_it_is_and_how_to_copy_it(id: str) -> None:
    head = (packaged_folder() / f"{id}.toml").read_text(encoding="utf-8").split("schema = 1")[0]
    assert head.startswith("# TeaCache coefficients for ")
    assert "# For a fine-tune: copy this file" in head


# ---- docs/coefficient-files.md cannot drift --------------------------------------------------------------------------


def keys(cls: type, prefix: str = "") -> list[tuple[str, str]]:
    """Every key of a file as it is written in the table, with its default."""
    plain = {None: "none", (): "`[]`", False: "`false`", 1: "`1`"}
    found = []
    for field in fields(cls):
        if field.name in TABLES:
            found += keys(TABLES[field.name], f"{field.name}.")
        elif field.metadata:
            required = "required" + (f" in `{SECTIONS[prefix]}`" if prefix in SECTIONS else "")
            found.append((prefix + field.name, required if field.default is MISSING else plain[field.default]))
    return found


TABLES = {"guard": Guard, "provenance": Provenance, "profile": Profile, "step_lists": StepList}
#: Of tables that may be left out.
SECTIONS = {"profile.": "[profile]", "step_lists.": "[[step_lists]]"}


def test_every_key_is_documented_with_its_default() -> None:
    written = re.findall(r"^\| `([a-z0-9_.]+)` \| [^|]+ \| ([^|]+) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(written) == sorted([("schema", "required"), *keys(Variant)])


def test_the_worked_examples_are_usable(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert examples
    for example in examples:
        path = tmp_path / f"{tomllib.loads(example)['id']}.toml"
        path.write_text(example, encoding="utf-8")
        read_variant(path)
