"""What can be named in a benchmark file: built in, of an installed package, or of any module.

What is built in is one file a declaration, in a package of its own. An installed package offers
more by entry points; anything else is named by its dotted path.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.plugins.third_party import failed_import, load_dotted


class Named(Protocol):
    """A declaration."""

    @property
    def name(self) -> str:
        """The word for it in a benchmark file."""
        ...


T = TypeVar("T", bound=Named)


@dataclass(frozen=True, kw_only=True)
class Registry(Generic[T]):
    """One kind of thing that is named.

    Attributes:
        noun: what it is, for messages.
        package: whose files declare what is built in.
        attribute: the name that a declaration has in its file.
        group: the entry points of installed packages.
        example: a dotted path, for messages.
        read: (name, what was found there, the package it is of) → declaration; raises
            `UsageError` where it is none.
    """

    noun: str
    package: str
    attribute: str
    group: str
    example: str
    read: Callable[[str, object, str], T]

    def built_in(self) -> dict[str, T]:
        """Return what is built in, by name, in the order of the files' names.

        Raises:
            ValueError: two files declare one name.
        """
        found: dict[str, T] = {}
        for declared in _declarations(self.package, self.attribute):
            if declared.name in found:
                raise ValueError(f"two files of {self.package} declare '{declared.name}'")
            found[declared.name] = declared
        return found

    def find(self, stated: str, folders: Sequence[Path] = ()) -> T:
        """Return what a benchmark file names.

        Args:
            stated: a name, or a dotted path.
            folders: where a module that is not installed is looked for.

        Raises:
            UsageError: there is none, several packages offer one of that name, or it is broken.
        """
        built_in = self.built_in()
        if stated in built_in:
            return built_in[stated]
        offered = [e for e in metadata.entry_points(group=self.group) if e.name == stated]
        if len(offered) > 1:
            named = ", ".join(sorted(f"{_path(e)} of {_distribution(e)}" for e in offered))
            raise UsageError(
                f"several packages offer a {self.noun} called '{stated}': {named}. Name the one "
                "that is meant by its dotted path, or uninstall the others."
            )
        if offered:
            return self._offered(offered[0])
        if "." not in stated.replace(":", "."):
            known = dict.fromkeys((*built_in, *metadata.entry_points(group=self.group).names))
            near = did_you_mean(stated, known)
            path = f" Or name one by its dotted path, such as '{self.example}'."
            raise UsageError(f"unknown {self.noun} '{stated}'.{near}{path}")
        return self.read(stated, load_dotted(stated, folders), "")

    def _offered(self, entry: metadata.EntryPoint) -> T:
        title = f"the {self.noun} '{entry.name}' of {_distribution(entry)} ({_path(entry)})"
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:
            cause = failed_import(_path(entry), error)
            raise UsageError(f"{title} is broken: {cause}") from error
        try:
            return self.read(entry.name, found, _distribution(entry))
        except UsageError as error:
            raise UsageError(f"{title} is broken: {error}") from error


def _declarations(package: str, attribute: str) -> tuple[Any, ...]:
    folder = importlib.import_module(package)
    return _in_folders(package, attribute, tuple(folder.__path__))


@lru_cache(maxsize=16)
def _in_folders(package: str, attribute: str, folders: tuple[str, ...]) -> tuple[Any, ...]:
    """Return the declarations of a package's files; the same folders are read once."""
    names = [f"{package}.{module.name}" for module in pkgutil.iter_modules(folders)]
    return tuple(getattr(importlib.import_module(name), attribute) for name in names)


def _path(entry: metadata.EntryPoint) -> str:
    return entry.value.replace(":", ".").split("[")[0].strip()


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
