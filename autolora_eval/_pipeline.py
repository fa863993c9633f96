"""The way through: benchmark → plan → generate → features and judgements → tables → report.

Each stage reads and writes files of the run folder, runs alone, and does nothing twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from autolora_eval._devices import choose_device, free_memory
from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import atomic_write, removed_on_failure
from autolora_eval._progress import Progress
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import Plan, make_plan
from autolora_eval.generation.preflight import missing
from autolora_eval.runs.folder import Run, RunFolder, open_run
from autolora_eval.runs.manifest import (
    other_settings,
    stage_times,
    state_models,
    state_plan,
    update_manifest,
)


def run(
    benchmark: str | Path,
    output: str | Path | None = None,
    *,
    limit_prompts: int | None = None,
    limit_seeds: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a benchmark from its file to its report, or finish what was interrupted.

    Args:
        benchmark: path of a YAML file, or the name of a shipped benchmark.
        output: run folder; `reports/<name>` where not given.
        limit_prompts: take only the first so many prompts.
        limit_seeds: take only the first so many seeds.
        progress: where progress is drawn; nowhere by default.

    Raises:
        UsageError: the benchmark cannot be used as it stands.
        AutoLoRAEvalError: something that it needs is missing here, or a stage failed. What was
            made so far is kept; the same call goes on from there.
    """
    return RunPipeline.start(benchmark, output, limit_prompts, limit_seeds, progress).run()


def score_images(
    images: str | Path,
    benchmark: str | Path,
    output: str | Path | None = None,
    *,
    name: str = "Images",
    model: str | None = None,
    limit_prompts: int | None = None,
    limit_seeds: int | None = None,
    progress: Progress | None = None,
) -> Run:
    """Score images that were made elsewhere by a benchmark's prompts, seeds, extractor and judge.

    The benchmark's pipeline and LoRA are not needed. Every image is accounted for: missing, extra,
    duplicate, corrupt, of another size or of one colour (`image_sets/` in the run folder).

    Args:
        images: a folder or listing; see `autolora_eval.generation.image_readers`.
        benchmark: path of a YAML file, or the name of a shipped benchmark.
        output: run folder; `reports/<benchmark>-<name>` where not given.
        name: what the images are called in tables.
        model: the benchmark's model that they are of; its first where not given.
        limit_prompts: take only the first so many prompts.
        limit_seeds: take only the first so many seeds.
        progress: where progress is drawn; nowhere by default.

    Raises:
        UsageError: benchmark or images cannot be used as they stand.
        AutoLoRAEvalError: a stage failed. What was made so far is kept.
    """
    from autolora_eval.config.image_set_benchmark import (
        check_no_overlap,
        image_set_benchmark,
        image_set_run_name,
    )
    from autolora_eval.generation.image_import import check_image_sets
    from autolora_eval.generation.image_readers import read_image_set

    loaded = load_benchmark(benchmark)
    read_image_set(Path(images))
    folder = _run_folder(output or Path("reports") / image_set_run_name(loaded, name))
    check_no_overlap(Path(images), folder)
    file = folder.path / "benchmark.yaml"
    text = image_set_benchmark(loaded, Path(images), name, model, file)
    # Nothing takes the place of what is there before it is known to fit.
    with removed_on_failure(folder.path), atomic_write(file) as unproven:
        unproven.write_text(text, encoding="utf-8", newline="\n")
        try:
            tried = RunPipeline.start(unproven, folder.path, limit_prompts, limit_seeds)
            check_image_sets(tried.plan, folder)
        except UsageError as error:
            raise UsageError(str(error).replace(unproven.name, file.name)) from error
    return RunPipeline.start(file, folder.path, limit_prompts, limit_seeds, progress).run()


def _run_folder(path: str | Path) -> RunFolder:
    """Return the run folder at a path.

    Raises:
        UsageError: a file is there, or on the way to it.
    """
    for place in (Path(path), *Path(path).parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"'{place}' is a file, not a run folder. Name another --output.")
    return RunFolder(Path(path))


class RunPipeline:
    """The stages of one run, each of which can be run alone.

    Args:
        plan: what to run.
        folder: where to.
        progress: where progress is drawn.
        stated: the benchmark as the user named it, for the manifest.
        limits: `limit_prompts` and `limit_seeds`, None where not limited.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        progress: Progress,
        stated: str,
        limits: dict[str, int | None],
    ) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.stated, self.limits = stated, limits

    @classmethod
    def start(
        cls,
        benchmark: str | Path,
        output: str | Path | None = None,
        limit_prompts: int | None = None,
        limit_seeds: int | None = None,
        progress: Progress | None = None,
    ) -> RunPipeline:
        """Read a benchmark, or the benchmark of a run folder, and open the run folder.

        Raises:
            UsageError: the benchmark cannot be used as it stands.
        """
        if (Path(benchmark) / "manifest.json").is_file():
            if output is not None:
                raise UsageError(
                    f"'{benchmark}' is a run folder, which is its own output: leave out --output "
                    f"'{output}', or name the benchmark instead of the run."
                )
            output = Path(benchmark)
            manifest = RunFolder(output).read_manifest()
            benchmark = RunFolder(output).benchmark_file()
            limit_prompts = limit_prompts or manifest.get("limit_prompts")
            limit_seeds = limit_seeds or manifest.get("limit_seeds")
        loaded = load_benchmark(benchmark)
        plan = make_plan(loaded, limit_prompts, limit_seeds)
        folder = _run_folder(output or Path("reports") / loaded.spec.name)
        limits = {"limit_prompts": limit_prompts, "limit_seeds": limit_seeds}
        return cls(plan, folder, progress or Progress(), str(benchmark), limits)

    def require_manifest(self) -> None:
        """Check that the images' stage has been run in this folder, with these very settings.

        Raises:
            UsageError: it has not.
        """
        if not self.folder.manifest.is_file():
            raise UsageError(
                f"'{self.folder.path}' has no images yet. Make them with: "
                f"autolora-eval generate {self.stated} --output {self.folder.path}"
            )
        changed = other_settings(self.plan, self.folder)
        if changed:
            raise UsageError(
                f"the images of {', '.join(changed)} in '{self.folder.path}' were made with other "
                "settings than the benchmark states now, or not at all. Make them with: "
                f"autolora-eval generate {self.stated} --output {self.folder.path}"
            )

    def run(self) -> Run:
        """Run every stage in order.

        Raises:
            AutoLoRAEvalError: something is missing here, or a stage failed.
        """
        self.refuse_if_something_is_missing()
        self.generate()
        self.score()
        self.report()
        return open_run(self.folder.path)

    def refuse_if_something_is_missing(self, *, judged: bool = True) -> None:
        """Stop before anything is generated if the run could not be finished here.

        Args:
            judged: whether the images are to be judged too.

        Raises:
            UsageError: the published values do not fit the benchmark.
            AutoLoRAEvalError: all that is missing, and how to get it.
        """
        if self.plan.benchmark.published is not None:
            from autolora_eval.analysis.tables import check_published

            check_published(self.plan)
        problems = missing(self.plan, self.folder.path, judged=judged)
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            raise AutoLoRAEvalError(
                f"'{self.plan.benchmark.spec.name}' cannot run here; nothing was generated.\n"
                f"{listed}"
            )

    def generate(self) -> None:
        """Make the images."""
        from autolora_eval.generation.image_import import check_image_sets
        from autolora_eval.generation.stage import GenerationResult, generate

        check_image_sets(self.plan, self.folder)
        state_plan(self.plan, self.folder, self.stated, self.limits)
        started = datetime.now(UTC)
        device = choose_device(self.plan.benchmark.spec.device)

        def begin(found: GenerationResult) -> None:
            state_models(self.folder, found.models, found.settings_keys, device)
            update_manifest(self.folder, image_sets=found.image_sets)

        done = generate(self.plan, self.folder, self.progress, begin)
        update_manifest(self.folder, models=done.models)
        self._note_times("generate", started, done.made, done.reused)

    def _note_times(self, stage: str, started: datetime, done: int, reused: int) -> None:
        """Note what a stage took, unless it had nothing to do and an earlier one is noted."""
        if done or stage not in self.folder.read_manifest().get("stages", {}):
            update_manifest(self.folder, stages={stage: stage_times(started, done, reused)})

    def score(self) -> None:
        """Take features, judge, and join both into tables."""
        from autolora_eval.scoring.features import extract_features

        self.require_manifest()
        state_plan(self.plan, self.folder, self.stated, self.limits)
        started = datetime.now(UTC)
        features = extract_features(self.plan, self.folder, self.progress)
        # A resumed run that had nothing to extract did not load the extractor: what an earlier
        # one learnt of the same extractor still holds.
        before = self.folder.read_manifest().get("features") or {}
        if before.get("key") == features["key"]:
            features = before | features
        update_manifest(self.folder, features=features)
        self._note_times("features", started, features["done"], features["reused"])
        self._judge()
        self.tables()

    def tables(self) -> None:
        """Join what is there into scores, table and comparisons."""
        from autolora_eval.analysis.tables import write_tables

        judge = self.folder.read_manifest().get("judge") or {}
        counts = write_tables(self.plan, self.folder, judge.get("key"))
        update_manifest(self.folder, counts=counts)

    def report(self) -> None:
        """Draw the figures and write the report."""
        from autolora_eval.report import write_report

        write_report(self.folder)

    def _judge(self) -> None:
        if self.plan.benchmark.rubric is None:
            update_manifest(self.folder, judge=None)
            return
        from autolora_eval.scoring.judgement_store import judging_lock
        from autolora_eval.scoring.judging import completed_judging, judge_images, open_judge

        started = datetime.now(UTC)
        with judging_lock(self.folder.path):
            judged = completed_judging(self.plan, self.folder)
            if judged is None:
                with self._served() as urls, closing(open_judge(self.plan, urls)) as judge:
                    judged = judge_images(self.plan, self.folder, judge, self.progress)
        update_manifest(self.folder, judge=judged)
        self._note_times("judge", started, judged["done"], judged["reused"])

    @contextmanager
    def _served(self) -> Iterator[list[str] | None]:
        """Serve the judge while the block runs, if the benchmark asks for it."""
        spec = self.plan.benchmark.spec.judge
        if spec is None or not spec.launch:
            yield None
            return
        from autolora_eval.scoring.judges.vllm_server import launched_server

        free_memory()  # what generation and features held, so that the server can have it
        with launched_server(spec, self.folder.judge_log, self.progress.say) as base_url:
            yield [base_url]
