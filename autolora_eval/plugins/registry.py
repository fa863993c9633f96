"""One registry for every kind of plugin: methods, samplers, extractors, metrics and figures.

A plugin is built in (one file of a package), offered by an installed package (an entry point), or
named by the dotted path of any importable object.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from autolora_eval._errors import UsageError, did_you_mean
from autolora_eval.plugins.third_party import failed_import, load_dotted


class HasName(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """The name that a benchmark file uses."""


T = TypeVar("T", bound=HasName)


@dataclass(frozen=True)
class Origin:
    """Where a third-party plugin comes from.

    Attributes:
        name: the name that a benchmark file uses: that of the entry point, or the dotted path.
        path: the dotted path of the object.
        distribution: the package that offers it, as "name version"; empty for a dotted path.
    """

    name: str
    path: str
    distribution: str = ""


@dataclass(frozen=True)
class Offer(Generic[T]):
    """A plugin of an installed package that has not been imported yet."""

    registry: Registry[T]
    entry: metadata.EntryPoint

    @property
    def origin(self) -> Origin:
        """Where the plugin comes from."""
        path = self.entry.value.replace(":", ".").split("[")[0].strip()
        dist = self.entry.dist
        package = f"{dist.name} {dist.version}" if dist else "an unknown package"
        return Origin(self.entry.name, path, package)

    def load(self) -> T:
        """Import the plugin.

        Raises:
            UsageError: if the import fails or the object is not such a plugin; the message names
                the package.
        """
        origin = self.origin
        title = f"the {self.registry.noun} '{origin.name}' of {origin.distribution} ({origin.path})"
        try:
            found = self.entry.load()
        except (Exception, SystemExit) as error:
            cause = failed_import(origin.path, error)
            raise UsageError(f"{title} is broken: {cause}") from error
        try:
            return self.registry.read(found, origin)
        except UsageError as error:
            raise UsageError(f"{title} is broken: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Registry(Generic[T]):
    """All plugins of one kind.

    Attributes:
        noun: what a plugin is called in messages.
        group: the entry point group of installed packages.
        read: turns a third-party object into a plugin; raises `UsageError` for a wrong object.
        package: the package with the built-in plugins, one in each module whose name does not
            begin with "_"; empty if there are none.
        attribute: the name of the plugin in such a module.
        example: a dotted path for messages.
        hint: name → a sentence for messages about an unknown name, or "".
    """

    noun: str
    group: str
    read: Callable[[object, Origin], T]
    package: str = ""
    attribute: str = ""
    example: str = "my_package.my_module.NAME"
    hint: Callable[[str], str] = lambda name: ""

    def built_in(self) -> dict[str, T]:
        """Return the built-in plugins by name, in the order of their file names.

        Raises:
            ValueError: if two files have the same name for their plugin.
        """
        found: dict[str, T] = {}
        files: dict[str, str] = {}
        folders = tuple(importlib.import_module(self.package).__path__) if self.package else ()
        for file, plugin in _plugins_in(self.package, self.attribute, folders):
            if plugin.name in found:
                both = f"{files[plugin.name]}.py and {file}.py"
                raise ValueError(f"two {self.noun}s are named '{plugin.name}': {both}")
            found[plugin.name], files[plugin.name] = plugin, file
        return found

    def offers(self) -> dict[str, list[Offer[T]]]:
        """Return what installed packages offer, by name, without importing anything.

        A name has several offers if packages clash.
        """
        found: dict[str, list[Offer[T]]] = {}
        entries = [Offer(self, entry) for entry in metadata.entry_points(group=self.group)]
        for offer in sorted(entries, key=lambda o: (o.origin.name, o.origin.distribution)):
            found.setdefault(offer.origin.name, []).append(offer)
        return found

    def clash(self, name: str) -> str:
        """Return why the offers of a name cannot be used under it; "" if they can."""
        offers = self.offers().get(name, [])
        origins = (offer.origin for offer in offers)
        listed = ", ".join(f"{origin.path} of {origin.distribution}" for origin in origins)
        if offers and name in self.built_in():
            return f"'{name}' is built in. Name {listed} by its dotted path."
        if len(offers) > 1:
            return (
                f"several packages offer a {self.noun} called '{name}': {listed}. Name the one "
                "you mean by its dotted path, or uninstall the others."
            )
        return ""

    def find(self, name: str, folders: Sequence[Path] = ()) -> T:
        """Return the plugin that a benchmark file names.

        Raises:
            UsageError: if there is no such plugin, if it is broken, or if several packages offer
                one of this name.
        """
        built_in = self.built_in()
        if name in built_in:
            return built_in[name]
        offers = self.offers()
        if name in offers:
            if clash := self.clash(name):
                raise UsageError(clash)
            return offers[name][0].load()
        if "." in name.replace(":", "."):
            return self.read(load_dotted(name, folders), Origin(name, name))
        hint = self.hint(name) or did_you_mean(name, [*built_in, *offers])
        if not hint.startswith((" Did", " It")):
            hint += f" A dotted path such as '{self.example}' works too."
        raise UsageError(f"unknown {self.noun} '{name}'.{hint}")

    def load_all(self) -> Iterator[T | UsageError]:
        """Yield every plugin, built in and offered; an error in place of each unusable offer."""
        yield from self.built_in().values()
        for name, offers in self.offers().items():
            try:
                if clash := self.clash(name):
                    raise UsageError(clash)
                yield offers[0].load()
            except UsageError as error:
                yield error


@lru_cache(maxsize=16)
def _plugins_in(
    package: str, attribute: str, folders: tuple[str, ...]
) -> tuple[tuple[str, Any], ...]:
    """Return (module name, plugin) of a package's public modules. The folders are the cache key."""
    names = [m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")]
    modules = [(name, importlib.import_module(f"{package}.{name}")) for name in names]
    return tuple((name, getattr(module, attribute)) for name, module in modules)
