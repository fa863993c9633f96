"""Methods by name or path: built in, of an installed package, or of any module.

An installed package offers methods by entry points. Their names are read from its metadata; it
is imported only when one of them is used or listed, so that a broken one harms nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Literal

from autolora_eval.errors import UsageError, did_you_mean
from autolora_eval.guidance.code import failed_import, load_dotted
from autolora_eval.guidance.guiders import guider_method
from autolora_eval.guidance.registry import Rule, methods
from autolora_eval.guidance.samplers import sampler_method
from autolora_eval.guidance.upstream import upstream_guider

Kind = Literal["guider", "sampler"]
GROUPS: dict[Kind, str] = {"guider": "autolora_eval.methods", "sampler": "autolora_eval.samplers"}


@dataclass(frozen=True)
class Plugin:
    """A method that an installed package offers, not yet imported.

    Attributes:
        kind: what it is offered as.
        name: its name.
        path: the dotted path that it stands for.
        distribution: the package, as "name version".
        entry: the entry point.
    """

    kind: Kind
    name: str
    path: str
    distribution: str
    entry: metadata.EntryPoint

    @property
    def title(self) -> str:
        """It and where it is from, for messages."""
        return f"'{self.name}' of {self.distribution} ({self.path})"

    def load(self) -> Rule:
        """Import it.

        Raises:
            UsageError: it cannot be imported, or is no method; the message says whose it is.
        """
        try:
            found = self.entry.load()
        except (Exception, SystemExit) as error:
            cause = failed_import(self.path, error)
            raise UsageError(f"the {self.kind} {self.title} is broken: {cause}") from error
        try:
            rule = as_rule(self.kind, self.name, found, self.distribution)
        except UsageError as error:
            raise UsageError(f"the {self.kind} {self.title} is broken: {error}") from error
        code = {"distribution": self.distribution, **rule.code, "class": self.path}
        return replace(rule, name=self.name, code=code)


def plugins(kind: Kind) -> dict[str, list[Plugin]]:
    """Return what installed packages offer, by name: more than one where they clash."""
    found: dict[str, list[Plugin]] = {}
    for entry in sorted(metadata.entry_points(group=GROUPS[kind]), key=_order):
        path = entry.value.replace(":", ".").split("[")[0].strip()
        plugin = Plugin(kind, entry.name, path, _distribution(entry), entry)
        found.setdefault(entry.name, []).append(plugin)
    return found


def _order(entry: metadata.EntryPoint) -> tuple[str, str]:
    return entry.name, _distribution(entry)


def _distribution(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"


def find_rule(kind: Kind, stated: str, folders: Sequence[Path] = ()) -> Rule:
    """Return the method that a benchmark file names.

    Args:
        kind: the key that names it.
        stated: a name, or a dotted path.
        folders: where a module that is not installed is looked for.

    Raises:
        UsageError: there is none, several packages offer one of that name, or it is broken.
    """
    built_in = methods() if kind == "guider" else {}
    if stated in built_in:
        return built_in[stated]
    offered = plugins(kind)
    if stated in offered:
        clash = clash_of(kind, offered[stated])
        if clash is not None:
            raise UsageError(clash)
        return offered[stated][0].load()
    if "." not in stated.replace(":", "."):
        raise UsageError(f"unknown {kind} '{stated}'.{_suggestion(kind, stated, offered)}")
    return as_rule(kind, stated, load_dotted(stated, folders))


def as_rule(kind: Kind, name: str, found: object, source: str = "") -> Rule:
    """Return what was found under a name as a method of that kind.

    Raises:
        UsageError: it is something else.
    """
    if kind == "guider":
        return guider_method(name, found, source)
    return sampler_method(name, found, source)


def clash_of(kind: Kind, named: Sequence[Plugin]) -> str | None:
    """Return why a name cannot be used because others have it too; None if it is one's own."""
    name = named[0].name
    if kind == "guider" and name in methods():
        return (
            f"'{name}' is built in, and {_listed(named)} cannot take its place: it is named by "
            "its dotted path alone."
        )
    if len(named) > 1:
        return (
            f"several packages offer a {kind} called '{name}': {_listed(named)}. Name the one "
            "that is meant by its dotted path, or uninstall the others."
        )
    return None


def _listed(named: Sequence[Plugin]) -> str:
    return ", ".join(f"{plugin.path} of {plugin.distribution}" for plugin in named)


def _suggestion(kind: Kind, stated: str, offered: dict[str, list[Plugin]]) -> str:
    known = [*(methods() if kind == "guider" else ()), *offered]
    upstream = upstream_guider(stated) if kind == "guider" else None
    if upstream is not None:
        return f" Did you mean '{upstream.path}'?"
    other: Kind = "sampler" if kind == "guider" else "guider"
    if stated in plugins(other) or (other == "guider" and stated in methods()):
        return f" It is a {other}: write '{other}: {stated}'."
    path = "or the dotted path of one, such as 'my_package.MyGuider'"
    if kind == "sampler":
        path = "or the dotted path of one, such as 'my_package.my_sampler'"
    near = did_you_mean(stated, known)
    return near if near.startswith(" Did") else f"{near.rstrip('.')}{',' if near else ''} {path}."
