"""A `teacache.toml` in the folder that mflux loads a model from is used for that model, and never costs the picture."""

import shutil

import pytest

from mflux_teacache_plugin.variants import Entry, Variant, read_variant
from mflux_teacache_plugin.variants.catalog import ModelIdentity, beside_model, load_catalog
from tests.support import a_variant
from tests.test_options import write_variant
from tests.tiny.cases import case

FLUX1 = case("flux1")
NAMED = ModelIdentity(None, "test", None, ())


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny FLUX.1's weights, somewhere."""
    return shutil.copytree(tiny.checkpoint("dev"), tmp_path / "somewhere" / "tiny-dev")


def put(folder, **changes):
    path = write_variant(folder, **changes)
    return path.rename(folder / "teacache.toml")


def test_the_file_beside_the_weights_is_found_and_used(tiny, eager, connected, folder, capsys):
    put(folder, id="travels", models=["whoever/published-it"])
    FLUX1.run(tiny, "--teacache", "--model", str(folder), "--base-model", "dev")
    said = capsys.readouterr().err
    assert "TeaCache: skipped 2 of 4 steps (threshold 0.25, travels)" in said
    assert "calibrated for" not in said


def test_a_bad_file_is_a_line_and_the_picture_is_made(tiny, eager, connected, folder, capsys):
    (folder / "teacache.toml").write_text("schema = 1\nid = 3\n")
    picture = FLUX1.run(tiny, "--teacache", "1.5x", "--steps", "6", "--model", str(folder), "--base-model", "dev")
    said = capsys.readouterr().err
    assert picture.path.exists()
    assert said.count("teacache.toml is not a usable coefficient file, so it is not used (") == 1
    assert "TeaCache: skipped 2 of 6 steps" in said


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # mflux leaves the file of -C open
def test_a_recorded_run_finds_it_again(tiny, eager, connected, folder, capsys):
    put(folder, id="travels")
    options = ["--model", str(folder), "--base-model", "dev"]
    saved = FLUX1.run(tiny, "--teacache", "--metadata", *options)
    capsys.readouterr()
    FLUX1.run(tiny, "-C", str(saved.path.with_suffix(".metadata.json")), *options)
    assert "(threshold 0.25, travels)" in capsys.readouterr().err


def variant(id: str, **changes) -> Variant:
    return a_variant(FLUX1, id=id, **changes)


def test_the_users_own_files_go_before_it_and_shipped_ones_after(tmp_path, monkeypatch):
    beside = variant("travels")
    files = load_catalog(contributed=[variant("plugins")])
    assert files.match(NAMED, ["flux1"]).origin == "plugin"
    assert files.match(NAMED, ["flux1"], beside) == Entry(beside, "model")
    write_variant(tmp_path / "config" / "mflux" / "teacache", models=["test"])
    assert load_catalog().match(NAMED, ["flux1"], beside).origin == "user"
    assert load_catalog().match(NAMED, ["klein"], beside) is None, "it is for another adapter"


def test_where_it_is_looked_for(tmp_path, monkeypatch):
    assert beside_model("flux1-dev") is None
    assert beside_model(str(tmp_path)) is None
    path = put(tmp_path / "me" / "tuned", id="travels")
    assert beside_model(str(tmp_path / "me" / "tuned")) == path
    assert read_variant(path).id == "travels"
    monkeypatch.chdir(tmp_path)
    assert beside_model("me/tuned").resolve() == path
    assert beside_model("me/other") is None
    put(tmp_path / "mine", id="mine")
    assert beside_model("mine/").resolve() == tmp_path / "mine" / path.name, "as tab completion writes it"


@pytest.mark.parametrize("name", ["none/", "my models/x", "me/a--b", "me/x.git", "/", "me/" + 200 * "x"])
def test_what_is_no_name_of_the_hub_has_no_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert beside_model(name) is None


def test_a_downloaded_snapshot_has_it_too(tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--me--tuned" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    path = put(snapshot, id="travels")
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert beside_model("me/tuned") == path
