"""MagCache computes the steps that diffusers' hooks compute; `benchmarks/rivals/magcache.py` recorded them."""

import json
from pathlib import Path

import pytest

from mflux_teacache_plugin.caching.gate import Facts, Setup
from mflux_teacache_plugin.caching.stats import Decision, Generation
from mflux_teacache_plugin.errors import SettingsError, VariantFileError
from mflux_teacache_plugin.methods import parse
from mflux_teacache_plugin.methods.magcache import MagCache, MagCacheGate
from mflux_teacache_plugin.variants.catalog import load_catalog
from tests.support import a_variant
from tests.tiny.cases import case

FILE = json.loads((Path(__file__).parent / "data/magcache/diffusers.json").read_text())
FLUX = load_catalog().variants["flux1-dev"].variant


def unread() -> float:
    raise AssertionError("nothing is to be read")


def computed(gate, steps, first=0):
    return [step for step in range(first, steps) if not gate(step, unread).skip]


@pytest.mark.parametrize("run", FILE["runs"], ids=lambda run: "{steps}-{threshold}-{K}-{retention}".format(**run))
def test_computes_what_diffusers_computes(run):
    gate = MagCacheGate(FILE["ratios"], run["steps"], run["threshold"], run["K"], run["retention"])
    gate.reset()  # of the first step the gate is not asked: nothing is kept yet
    assert [0, *computed(gate, run["steps"], first=1)] == sorted({0, *run["computed"]})


def test_the_ratios_that_ship_are_the_published_ones():
    assert list(FLUX.mag_ratios) == FILE["ratios"]
    kontext, qwen = (load_catalog().variants[id].variant.mag_ratios for id in ("flux1-kontext-dev", "qwen-image"))
    assert (len(kontext), kontext[1], kontext[-1], len(qwen), qwen[1], qwen[-1]) == (
        20, 1.21875, 0.88672, 40, 1.6875, 0.54688,
    )  # fmt: skip


def test_its_defaults_are_diffusers_and_the_gate_has_the_variants_ratios():
    facts = Facts(tuple(1 - step / 28 for step in range(28)))
    gate = parse("magcache:0.06").gate(Setup(facts, Generation(28), FLUX))
    expected = next(
        r for r in FILE["runs"] if (r["threshold"], r["K"], r["retention"], r["steps"]) == (0.06, 3, 0.2, 28)
    )
    assert [0, *computed(gate, 28, first=1)] == expected["computed"]


@pytest.mark.parametrize("variant", [None, a_variant(case("klein"))], ids=["none", "no ratios"])
def test_a_model_without_ratios_is_refused_with_what_works_there(variant):
    with pytest.raises(SettingsError, match="there are no MagCache ratios") as error:
        MagCache().check(variant)
    assert "easycache:0.2" in error.value.hint


def test_ratios_in_a_file_are_checked_and_count_in_the_digest():
    made = a_variant(case("klein"))
    assert made.replace(mag_ratios=[1, 1.1]).digest != made.digest
    for wrong in ([1.1, 1.0], [1.0, 0.0], [], "1"):
        with pytest.raises(VariantFileError, match="mag_ratios"):
            made.replace(mag_ratios=wrong)


def test_why_nothing_was_skipped():
    generation = Generation(4, [Decision(step, False, "", accumulated=0.1 * step) for step in range(1, 4)])
    assert MagCache().why_nothing(generation, FLUX) == (
        "the first 20% of the steps are always computed; the smallest error of a step is 0.1"
    )
