"""The runs that are compared, each under a short name of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autolora_eval._errors import UsageError
from autolora_eval._files import Json
from autolora_eval._text import NOT_RECORDED
from autolora_eval.config.plan import Plan
from autolora_eval.runs.folder import Run, open_run
from autolora_eval.scoring.diversity_metric import installed_metric, needs_reference

_NEEDED = ("cells", "benchmark", "prompts", "seeds")
# Cell ids name files; a manifest of somebody else must not lead out of the folder.
_CELL_ID = re.compile(r"[^/\\.][^/\\]*")


@dataclass(frozen=True)
class SourceRun:
    """A finished run.

    Attributes:
        label: its short name.
        run: its tables and manifest.
    """

    label: str
    run: Run

    @property
    def manifest(self) -> Json:
        """What was run."""
        return self.run.manifest

    def section(self, name: str) -> Json:
        """Return a section of the manifest; empty where there is none."""
        found: Any = self.manifest.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def cells(self) -> list[Json]:
        """Its cells, as the manifest states them."""
        return [dict(cell) for cell in self.manifest.get("cells") or []]

    @property
    def prompts(self) -> list[str]:
        """Its prompts, in order."""
        return [str(prompt) for prompt in self.manifest.get("prompts") or []]

    @property
    def seeds(self) -> list[int]:
        """Its seeds, in order."""
        return [int(seed) for seed in self.manifest.get("seeds") or []]

    @property
    def repeats(self) -> int:
        """How often its judge was asked of each image."""
        return int(self.section("judge").get("repeats") or 1)

    @cached_property
    def hashes(self) -> dict[tuple[str, str, int], str | None]:
        """SHA-256 of every image, by (cell, prompt, seed); None for one that is missing."""
        columns = ("cell", "prompt", "seed", "sha256")
        rows = zip(*(self.run.scores[name] for name in columns), strict=True)
        return {
            (str(cell), str(prompt), int(seed)): sha if isinstance(sha, str) else None
            for cell, prompt, seed, sha in rows
        }


def open_sources(paths: Sequence[str | Path]) -> list[SourceRun]:
    """Open the runs; each is called as its folder, with as much of the path as tells it apart.

    Raises:
        UsageError: fewer than two, one of them twice, or one is no finished run.
    """
    places = [Path(path).resolve() for path in paths]
    if len(places) < 2:
        raise UsageError(f"name two or more runs to compare (got {len(places)}).")
    for place, path in zip(places, paths, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"'{path}' is named twice.")
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    sources = [
        SourceRun("/".join(place.parts[-depth:]), open_run(path))
        for place, path in zip(places, paths, strict=True)
    ]
    for source in sources:
        _refuse_unfit(source)
    return sources


def _refuse_unfit(source: SourceRun) -> None:
    """Stop at a run that lacks what a comparison is made of."""
    for name in _NEEDED:
        if not source.manifest.get(name):
            raise UsageError(
                f"'{source.label}' does not record its {name}: an older version made it, or its "
                "manifest.json was changed. With its benchmark, run it again: what is there stays."
            )
    for cell in source.cells:
        id_ = str(cell.get("id"))
        if not _CELL_ID.fullmatch(id_):
            raise UsageError(f"'{source.label}': '{id_:.100}' is no name of a cell.")
        if not source.run.folder.features(id_).is_file():
            raise UsageError(
                f"'{source.label}': its cell '{id_:.100}' has no features. Make them with: "
                f"autolora-eval score {source.run.folder.path}"
            )


# --------------------
# In what runs differ beside their methods, and whether they can be compared all the same.


_NAMED = 6
Grave = Literal["refused", "judges", "told"]


class Difference(NamedTuple):
    """One thing in which runs differ.

    Attributes:
        what: the thing.
        grave: `refused`; `judges`: refused unless asked for; `told`: a caveat.
        message: which run has what, and what that means.
    """

    what: str
    grave: Grave
    message: str


def differences(sources: Sequence[SourceRun]) -> list[Difference]:
    """Return all in which the runs differ, the gravest first."""
    found = [
        *_common("prompts", sources, lambda source: source.prompts),
        *_common("seeds", sources, lambda source: source.seeds),
        *_extractor(sources),
        *_measures(sources),
        *_judged(sources),
        *_repeats(sources),
        *_models(sources),
        *_software(sources),
    ]
    order = ("refused", "judges", "told")
    return sorted(found, key=lambda difference: order.index(difference.grave))


def without_baseline(plan: Plan) -> list[Difference]:
    """Return the models of which no cell is the baseline's: their cells are paired with none."""
    baseline = plan.benchmark.spec.baseline_method
    models = dict.fromkeys(cell.model.name for cell in plan.cells)
    have = {cell.model.name for cell in plan.cells if cell.method.name == baseline}
    lacking = [model for model in models if model not in have]
    if not lacking:
        return []
    message = (
        f"no cell of {', '.join(lacking)} is the baseline '{baseline}': nothing is compared there. "
        "Cells are paired where the runs call their model by one name."
    )
    return [Difference("models", "told", message)]


def refuse(found: Sequence[Difference], *, allow_different_judges: bool) -> None:
    """Stop if the runs cannot be compared.

    Raises:
        UsageError: with each reason, and what can be done.
    """
    wrong = [difference for difference in found if difference.grave == "refused"]
    judges = [difference for difference in found if difference.grave == "judges"]
    if not allow_different_judges:
        wrong += judges
    if not wrong:
        return
    lines = "\n".join(f"  - {difference.message}" for difference in wrong)
    way_out = "\nTo compare them all the same: --allow-different-judges." if judges else ""
    if len(wrong) > len(judges):
        way_out = ""
    raise UsageError(f"these runs cannot be compared:\n{lines}{way_out}")


def _common(
    what: str, sources: Sequence[SourceRun], of: Callable[[SourceRun], list[Any]]
) -> list[Difference]:
    sets = [set(of(source)) for source in sources]
    shared = set.intersection(*sets)
    if all(found == shared for found in sets):
        return []
    counts = ", ".join(f"{len(found)} in {s.label}" for s, found in zip(sources, sets, strict=True))
    if not shared:
        return [Difference(what, "refused", f"no {what} in common: {counts}.")]
    message = f"{what}: {counts}; only the {len(shared)} that all have are compared."
    return [Difference(what, "told", message)]


def _extractor(sources: Sequence[SourceRun]) -> list[Difference]:
    return _section(
        sources,
        "features",
        "extractor",
        "refused",
        "the cosines of two extractors are not on one scale. Score the runs anew with one.",
    )


def _measures(sources: Sequence[SourceRun]) -> list[Difference]:
    sections = [source.section("diversity_metrics") for source in sources]
    names = dict.fromkeys(name for section in sections for name in section)
    left = [name for name in names if not all(name in section for section in sections)]
    shared = [name for name in names if name not in left]
    against = [name for name in shared if needs_reference(sections[0][name])]
    lost = [n for n in shared if n not in against and installed_metric(n) is None]
    found = []
    if against:
        message = "measures of diversity against a reference set, which no two runs share, are "
        found.append(Difference("diversity", "told", f"{message}left out: {', '.join(against)}."))
    if left:
        message = f"measures of diversity that not all runs have are left out: {', '.join(left)}."
        found.append(Difference("diversity", "told", message))
    if lost:
        message = f"measures of diversity that are not installed are left out: {', '.join(lost)}."
        found.append(Difference("diversity", "told", message))
    return found


def _judged(sources: Sequence[SourceRun]) -> list[Difference]:
    with_judge = [source for source in sources if source.section("judge")]
    if not with_judge:
        return []
    if len(with_judge) < len(sources):
        without = ", ".join(s.label for s in sources if not s.section("judge"))
        message = f"no judge scored {without}: only diversity is compared."
        return [Difference("judge", "told", message)]
    rubrics = {source.section("judge").get("rubric_sha256") for source in sources}
    if len(rubrics) > 1:
        names = _listed(sources, lambda s: str(s.section("judge").get("rubric_name")))
        message = f"rubric: {names}; other questions have other answers."
        return [Difference("rubric", "refused", message)]
    return _section(
        sources,
        "judge",
        "judge",
        "judges",
        "two judges are not on one scale. Score the runs anew with one.",
    )


def _software(sources: Sequence[SourceRun]) -> list[Difference]:
    """Which versions and devices differ: the same image differs in its last bits between them."""
    known = [_versions(source) for source in sources]
    names = dict.fromkeys(name for versions in known for name in versions)
    differing = [name for name in names if len({versions.get(name) for versions in known}) > 1]
    if not differing:
        return []
    shown = []
    for name in differing[:_NAMED]:
        found = (versions.get(name, NOT_RECORDED) for versions in known)
        told = (f"{one} in {s.label}" for one, s in zip(found, sources, strict=True))
        shown.append(f"{name} {', '.join(told)}")
    more = f"; and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
    return [Difference("software", "told", f"versions and devices: {'; '.join(shown)}{more}.")]


def _versions(source: SourceRun) -> dict[str, str]:
    manifest = source.manifest
    found = {"autolora-eval": manifest.get("autolora_eval_version"), **source.section("packages")}
    found["device"] = source.section("hardware").get("device")
    return {name: str(value) for name, value in found.items() if value}


def _repeats(sources: Sequence[SourceRun]) -> list[Difference]:
    """How often each image was judged: a mean of three verdicts is not a single one."""
    counts = [source.repeats for source in sources]
    if not all(source.section("judge") for source in sources) or len(set(counts)) == 1:
        return []
    named = ", ".join(f"{n} in {s.label}" for s, n in zip(sources, counts, strict=True))
    message = f"replies an image: {named}; the first {min(counts)} of each are taken."
    return [Difference("judge repeats", "told", message)]


def _models(sources: Sequence[SourceRun]) -> list[Difference]:
    """Models of one name that are not the same: pipeline, LoRA, scheduler, size, precision."""
    found = []
    for name in dict.fromkeys(name for source in sources for name in source.section("models")):
        having = [source for source in sources if name in source.section("models")]
        made = [s for s in having if not only_named(s.section("models")[name])]
        keys = _differing([_plain(source.section("models")[name]) for source in made])
        if keys:
            runs = ", ".join(source.label for source in made)
            message = f"model '{name}' differs in {', '.join(keys)} between {runs}."
            found.append(Difference(f"model {name}", "told", message))
    return found


def only_named(model: Json) -> bool:
    """Whether a model only lends its name to images that were made elsewhere."""
    pipeline = model.get("pipeline")
    return isinstance(pipeline, dict) and pipeline.get("used") is False


def _plain(model: Json) -> Json:
    """Return a model without what does not decide an image: where its files are."""
    return {
        key: {k: v for k, v in value.items() if k != "name"}
        if isinstance(value, dict) and value.get("kind") != "hub"
        else value
        for key, value in model.items()
    }


def _section(
    sources: Sequence[SourceRun], section: str, what: str, grave: Grave, why: str
) -> list[Difference]:
    """Compare the content keys of what a stage used."""
    found = [source.section(section) for source in sources]
    if len({part.get("key") for part in found}) == 1:
        return []
    counts = ("done", "reused", "cached", "failed", "unscored", "key", "request_key")
    keys = _differing([{k: v for k, v in part.items() if k not in counts} for part in found])
    names = _listed(sources, lambda source: str(source.section(section).get("model")))
    return [Difference(what, grave, f"{what}: {names} (differs in {', '.join(keys)}); {why}")]


def _differing(parts: Sequence[Json]) -> list[str]:
    keys = dict.fromkeys(key for part in parts for key in part)
    return [key for key in keys if any(part.get(key) != parts[0].get(key) for part in parts)]


def _listed(sources: Sequence[SourceRun], of: Callable[[SourceRun], str]) -> str:
    return ", ".join(f"'{of(source)}' in {source.label}" for source in sources)
