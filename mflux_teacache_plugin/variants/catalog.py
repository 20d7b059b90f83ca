"""Where coefficient files are looked for, which one wins, and which variant fits a loaded model.

The search goes from what the user said most explicitly to what the package ships; the first variant of an id wins. A
file that is there but broken is an error and never a reason to take other numbers. No mflux import.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import platformdirs

from mflux_teacache_plugin.errors import UnsupportedModelError, VariantFileError
from mflux_teacache_plugin.variants.variant import BESIDE_MODEL, Variant, read_variant

#: Files and folders to search, separated like PATH.
ENVIRONMENT_VARIABLE = "MFLUX_TEACACHE_COEFFICIENTS"

#: Where a variant can come from, the strongest first.
ORIGINS = ("option", "environment", "user", "model", "plugin", "package")


@dataclass(frozen=True)
class ModelIdentity:
    """What a loaded model is called: mflux's `model_config`, and where the weights come from."""

    source: str | None  #: the path or repo given for the weights; None where a name of mflux's registry was given
    name: str | None  #: `model_name`
    base: str | None = None  #: `base_model`; set only on a config that mflux derived for a custom checkpoint
    aliases: tuple[str, ...] = ()  #: a derived config has those of its base


@dataclass(frozen=True)
class Entry:
    """A variant, and which of the `ORIGINS` it came from."""

    variant: Variant
    origin: str
    exact: bool = True  #: for the model that it was chosen for, not for one that this only resembles

    @property
    def place(self) -> str:
        """Where to look, for a listing: the file, or that there is none."""
        return str(self.variant.path or "made in Python by a plugin")


@dataclass
class Catalog:
    """All variants that can be used."""

    user_folder: Path  #: where the user's own files belong; it need not exist
    variants: dict[str, Entry] = field(default_factory=dict)  #: id → the entry that wins
    shadowed: dict[str, list[Entry]] = field(default_factory=dict)  #: id → the entries that it hides, strongest first
    #: Unusable files; empty unless loaded with strict=False.
    problems: list[VariantFileError] = field(default_factory=list)
    explicit: Entry | None = None  #: of the one file that the option named; it is used whatever the model is called

    def match(self, identity: ModelIdentity, adapters: Collection[str], beside: Variant | None = None) -> Entry | None:
        """The variant for a loaded model, or None; `beside`, which lies with its weights, comes after the user's own.

        The better fit wins (`_fit`); of equal fits the one from the stronger origin, then one that names the model over
        one that only names it as related, then the longer name. Variants for other than these adapters are not looked at;
        UnsupportedModelError if the option named a file that is for another.
        """
        if self.explicit is not None:
            variant = self.explicit.variant
            if variant.adapter not in adapters:
                cause = f"its adapter is {variant.adapter}; the model works with {' or '.join(sorted(adapters))}"
                hint = "name another one, or none to let the model's name decide"
                what = f"{variant.path or variant.id} does not fit this model"
                raise UnsupportedModelError(what, cause=cause, hint=hint)
            return replace(self.explicit, exact=_fit(variant, identity)[0] == _EXACT)
        best, best_fit = None, (0, 0, False, 0)
        for entry in self.variants.values():
            grade, direct, length = _fit(entry.variant, identity)
            fit = (grade, -ORIGINS.index(entry.origin), direct, length)
            if grade and entry.variant.adapter in adapters and (best is None or fit > best_fit):
                best, best_fit = entry, fit
        weaker = best is None or ORIGINS.index(best.origin) > ORIGINS.index("model")
        if beside is not None and beside.adapter in adapters and weaker:
            return Entry(beside, "model")
        return None if best is None else replace(best, exact=best_fit[0] == _EXACT)

    def by_id(self, id: str) -> Entry:
        """The variant of that id, for whatever model. Raises UnsupportedModelError naming those there are."""
        if id not in self.variants:
            hint = f"known are {', '.join(sorted(self.variants))}; see mflux-teacache variants"
            raise UnsupportedModelError(f"there is no variant '{id}'", hint=hint)
        return self.variants[id]


def beside_model(source: str) -> Path | None:
    """The coefficient file in the folder, or the downloaded snapshot, that a model is loaded from; None if there is none.

    mflux downloads only what it loads, so of a model on the hub the file is there once somebody has fetched it.
    """
    folder = Path(source).expanduser()
    if folder.is_dir() or source.count("/") != 1 or source.startswith((".", "~", "/")):
        return folder / BESIDE_MODEL if (folder / BESIDE_MODEL).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no name that the hub knows
        cached = try_to_load_from_cache(source, BESIDE_MODEL)
        return Path(cached) if isinstance(cached, str) else None
    return None


_EXACT, _RESEMBLES = 2, 1


def _fit(variant: Variant, identity: ModelIdentity) -> tuple[int, bool, int]:
    """How well a variant fits: (grade, whether through `models` and not `related`, length of the name that matched).

    `_EXACT`: `models` names what was loaded, the custom weights or else the entry of mflux's registry. `_RESEMBLES`:
    the weights are others, but the entry that mflux takes them for, its base or an alias is in `models`; or any of
    these is in `related`. 0: no fit.
    """
    models = {name.casefold() for name in variant.models}
    related = {name.casefold() for name in variant.related}
    aliases = {alias.casefold() for alias in identity.aliases}
    names = aliases | {name.casefold() for name in (identity.name, identity.base) if name}

    # On a derived config the name is what the user gave, also where nobody passed the source on.
    source = identity.source or (identity.name if identity.base else None)
    if source is not None and (identity.base or source != identity.name):
        exact = {name for name in models if _names_source(name, source)}
    else:
        # The ControlNets share the repo id of the model that they steer; only their alias tells them apart.
        exact = set() if aliases & related else models & names
    tries = ((_EXACT, True, exact), (_RESEMBLES, True, models & names), (_RESEMBLES, False, related & names))
    return next(((grade, direct, max(map(len, found))) for grade, direct, found in tries if found), (0, False, 0))


def _names_source(name: str, source: str) -> bool:
    """Whether a case-folded entry of `models` names these weights: the same repo, or a folder called like it."""
    if name == source.casefold():
        return True
    path = Path(source).expanduser()
    # As mflux decides: "owner/name" is a repo unless there is such a folder.
    if source.count("/") == 1 and not source.startswith((".", "~", "/")) and not path.exists():
        return False
    return path.absolute().name.casefold() in (name, name.rsplit("/", 1)[-1])


def packaged_folder() -> Path:
    """The folder of the files that come with the package: inside it in a wheel, beside it in a checkout."""
    package = Path(__file__).parent.parent
    checkout = package.parent
    # Only a checkout has a pyproject.toml here; in site-packages a folder of this name would be somebody else's.
    if not (package / "coefficients").is_dir() and (checkout / "pyproject.toml").is_file():
        return checkout / "coefficients"
    return package / "coefficients"


def load_catalog(
    explicit: Path | None = None,
    contributed: Iterable[Variant | Path] = (),
    environ: Mapping[str, str] = os.environ,
    *,
    strict: bool = True,
) -> Catalog:
    """Read every coefficient file on the search path.

    `explicit` is the file or folder that the option names; `contributed` is what other plugins bring. VariantFileError if a
    file cannot be used, a path that was named has none, or an origin has the same id twice. Without `strict` that is kept in
    `Catalog.problems`, for listings only: such a catalog may hold other numbers than the user meant.
    """
    catalog = Catalog(platformdirs.user_config_path("mflux") / "teacache")
    sources: dict[str, list[Variant | Path]] = {
        "option": [] if explicit is None else [explicit],
        "environment": [Path(item) for item in environ.get(ENVIRONMENT_VARIABLE, "").split(os.pathsep) if item],
        "user": [catalog.user_folder] if catalog.user_folder.is_dir() else [],
        "plugin": list(contributed),
        "package": [packaged_folder()],
    }
    for origin in ORIGINS:
        _add_origin(catalog, origin, sources.get(origin, ()))
    if explicit is not None and Path(explicit).expanduser().is_file():
        catalog.explicit = next((entry for entry in catalog.variants.values() if entry.origin == "option"), None)
    if not strict or not catalog.problems:
        return catalog
    first, *others = catalog.problems
    if not others:
        raise first
    cause = "\n".join(filter(None, (line for each in catalog.problems for line in (each.error, each.cause))))
    hint = "mflux-teacache doctor shows every file and where it was found"
    raise VariantFileError(f"{len(catalog.problems)} problems with coefficient files", cause=cause, hint=hint)


def _add_origin(catalog: Catalog, origin: str, sources: Iterable[Variant | Path]) -> None:
    found: dict[str, Variant] = {}
    for variant in _variants(sources, catalog.problems, may_be_empty=origin == "user"):
        if variant.id in found:
            places = "\n".join(Entry(each, origin).place for each in (found[variant.id], variant))
            twice, hint = f'the id "{variant.id}" is there twice', "remove or rename one of them"
            catalog.problems.append(VariantFileError(twice, cause=places, hint=hint))
            continue
        found[variant.id] = variant
        entry = Entry(variant, origin)
        if catalog.variants.setdefault(variant.id, entry) is not entry:
            catalog.shadowed.setdefault(variant.id, []).append(entry)


def _variants(
    sources: Iterable[Variant | Path], problems: list[VariantFileError], may_be_empty: bool
) -> Iterator[Variant]:
    """The variants of one origin; what cannot be used goes to `problems`."""
    seen: set[Path] = set()
    for source in sources:
        if isinstance(source, Variant):
            yield source
            continue
        path = Path(source).expanduser()
        files = sorted(path.glob("[!.]*.toml")) if path.is_dir() else [path]  # hidden ones are an editor's, or macOS's
        if not files and not may_be_empty:
            hint = "name a .toml file or a folder of them"
            problems.append(VariantFileError(f"{path} holds no coefficient file", hint=hint))
        for file in files:
            # A file that is named by itself and through its folder is one file.
            if (real := file.resolve()) in seen:
                continue
            seen.add(real)
            try:
                yield read_variant(file)
            except VariantFileError as problem:
                problems.append(problem)
