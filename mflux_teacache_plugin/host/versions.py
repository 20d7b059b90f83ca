"""Which versions of mflux the tests have seen: the only place that names them."""

from importlib.metadata import PackageNotFoundError, version

#: Minor versions, oldest first.
TESTED = ("0.22", "0.23", "0.24")


def installed(name: str = "mflux") -> str | None:
    """The version of a distribution, or None where it is not installed by name."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def is_tested(found: str) -> bool:
    """Whether the tests have seen this version."""
    return ".".join(found.split(".")[:2]) in TESTED


def in_words() -> str:
    """`0.22, 0.23, 0.24`."""
    return ", ".join(TESTED)
