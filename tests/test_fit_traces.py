"""The shipped numbers that follow from the traces of real models (benchmarks/fit_traces.py)."""

import importlib
import sys
from pathlib import Path

import pytest

from mflux_teacache_plugin import choose
from mflux_teacache_plugin.calibration.analysis import OWN, PROFILE, PUBLISHED
from mflux_teacache_plugin.variants import read_variant
from mflux_teacache_plugin.variants.catalog import packaged_folder

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
TRACES = BENCHMARKS / "traces"


@pytest.fixture(scope="module")
def fit_traces():
    importlib.import_module("mflux.models.common.config.config")  # changes the environment, which no test may
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("fit_traces")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("id", sorted(path.stem for path in TRACES.glob("*.json")))
def test_the_shipped_numbers_are_what_the_traces_give(id, fit_traces):
    shipped = read_variant(packaged_folder() / f"{id}.toml")
    fitted, _ = fit_traces.fit(TRACES / f"{id}.json", choose.catalog())
    assert fitted.profile.change == pytest.approx(shipped.profile.change, abs=2e-4)
    assert fitted.profile.sigma == pytest.approx(shipped.profile.sigma, abs=2e-4)
    assert (fitted.polynomial, fitted.range, fitted.threshold) == (shipped.polynomial, shipped.range, shipped.threshold)


def test_it_says_what_predicts_best_and_a_foreign_signal_gives_no_polynomial(fit_traces, tmp_path, monkeypatch, capsys):
    wanted = [str(TRACES / f"{id}.json") for id in ("flux1-krea-dev", "z-image-base")]
    argv = ["fit_traces.py", *wanted, "--against", str(BENCHMARKS / "published"), "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    fit_traces.main()
    assert "| `flux1-krea-dev` | 7 | 0.695 (0.0987) | 0.622 (0.1099) | **0.849 (0.0694)** |" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flux1-krea-dev.toml", "z-image-base.toml"]
    found, analysis = fit_traces.fit(Path(wanted[1]), choose.catalog(BENCHMARKS / "published"))
    assert set(analysis.scores) == {PUBLISHED, OWN, PROFILE}
    assert found.polynomial is None and found.profile is not None
