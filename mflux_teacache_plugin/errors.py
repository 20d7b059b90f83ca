"""Errors meant for the person at the keyboard: what went wrong, why, and what to do about it."""

import textwrap


class TeaCacheError(Exception):
    """Base of every error of this plugin: in one line what could not be done; why, a line per reason; and the fix."""

    def __init__(self, error: str, *, cause: str | None = None, hint: str | None = None) -> None:
        super().__init__(error)
        self.error, self.cause, self.hint = error, cause, hint

    def __str__(self) -> str:
        parts = [f"error: {self.error}"]
        for label, text in (("  cause: ", self.cause), ("  hint: ", self.hint)):
            if text:
                parts.append(label + textwrap.indent(text, " " * len(label)).lstrip())
        return "\n".join(parts)

    @property
    def in_line(self) -> str:
        """What and why, without the hint: `what (why; why)`."""
        return f"{self.error} ({'; '.join(self.cause.splitlines())})" if self.cause else self.error


class VariantFileError(TeaCacheError):
    """A coefficient file, or a variant built in Python, cannot be used."""


class UnsupportedModelError(TeaCacheError):
    """The model has no adapter or no coefficients."""


class AlreadyAppliedError(TeaCacheError):
    """The model already runs with TeaCache."""


class ConflictError(TeaCacheError):
    """Another step cache is active on the same model."""


class SettingsError(TeaCacheError):
    """An option, an environment variable or an argument has a value that makes no sense."""
