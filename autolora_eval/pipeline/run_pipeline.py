"""The stages in order: benchmark → plan → images → features and judgements → tables → report.

Each stage reads and writes files of the run folder, runs alone, and does nothing twice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from autolora_eval._devices import choose_device, hardware, package_versions
from autolora_eval._errors import AutoLoRAEvalError, UsageError
from autolora_eval._files import atomic_write, writing
from autolora_eval._progress import Progress, forget_warnings
from autolora_eval.config.load import load_benchmark
from autolora_eval.config.plan import make_plan
from autolora_eval.config.stage_inputs import (
    cells_not_generated,
    feature_settings,
    judge_settings,
    planned_manifest,
)
from autolora_eval.generation.preflight import check_image_sets, missing
from autolora_eval.generation.stage import GenerationResult, generate
from autolora_eval.pipeline.background import BackgroundFeatures, BackgroundJudging
from autolora_eval.report import is_report_current, write_report
from autolora_eval.runs.folder import (
    Run,
    RunFolder,
    are_tables_current,
    checksums,
    open_run,
    output_folder,
    tables_key,
)
from autolora_eval.runs.manifest import RunManifest
from autolora_eval.runs.records import DifferenceRecord, HardwareRecord, ModelRecord, StageRecord
from autolora_eval.runs.storage import working_copy
from autolora_eval.scoring.features import extract_features
from autolora_eval.scoring.judging import judge_missing, open_judge

if TYPE_CHECKING:
    from autolora_eval.pipeline.ray_engine import EngineName, RayEngine


def run(
    benchmark: str | Path,
    output: str | Path | None = None,
    *,
    limit_prompts: int | None = None,
    limit_seeds: int | None = None,
    accept_versions: bool = False,
    engine: EngineName = "local",
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a benchmark from its file to its report. Call it again to resume an interrupted run.

    Args:
        benchmark: Path of a benchmark file or run folder, or name of a shipped benchmark.
        output: Run folder or its URL: a new or empty folder, or an earlier run.
            Default: `reports/<benchmark name>`.
        limit_prompts: Use only the first `limit_prompts` prompts, at least 1. Default: all.
        limit_seeds: Use only the first `limit_seeds` seeds, at least 1. Default: all.
        accept_versions: Resume even if the finished images were made with other versions of torch,
            diffusers, peft or transformers. The report names both.
        engine: `local` runs the models in this process, `ray` on a Ray cluster. The results are
            the same.
        ray_address: Address of an existing Ray cluster. Default: a new one, on this machine.
        progress: Shows the progress. Default: nothing is shown.

    Returns:
        The finished run, with its tables as pandas DataFrames.

    Raises:
        UsageError: The benchmark is not valid, or `output` is not a run folder. The message names
            each problem and its line.
        AutoLoRAEvalError: Something is missing on this machine, or a stage failed. Finished images,
            features and judgements are kept, and the next call continues from there.

    Examples:
        >>> run = autolora_eval.run("quickstart", "reports/mine", limit_seeds=2)
        >>> run.table[["method", "diversity", "div_pc"]]
    """
    with working_copy(output) as folder:
        return RunPipeline(
            benchmark,
            folder,
            limit_prompts=limit_prompts,
            limit_seeds=limit_seeds,
            progress=progress,
            accept_versions=accept_versions,
            engine=engine,
            ray_address=ray_address,
        ).run()


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
    """Score existing images with the prompts, seeds, extractor and judge of a benchmark.

    The benchmark still names a model, but it is neither downloaded nor loaded. A local pipeline
    folder must exist; a LoRA file need not. `image_sets/` in the run folder lists every image that
    is missing, extra, duplicate, corrupt, of another size or of a single colour.

    Args:
        images: A folder `<prompt>/<seed>.png`, an imagefolder, a listing or a saved dataset.
        benchmark: Path of a benchmark file, or name of a shipped benchmark.
        output: Run folder. Default: `reports/<benchmark name>-<name>`.
        name: Name of the method in the tables.
        model: Model of the benchmark that made the images. Default: the first one.
        limit_prompts: Use only the first `limit_prompts` prompts, at least 1. Default: all.
        limit_seeds: Use only the first `limit_seeds` seeds, at least 1. Default: all.
        progress: Shows the progress. Default: nothing is shown.

    Returns:
        The finished run.

    Raises:
        UsageError: The benchmark or the image set is not valid.
        AutoLoRAEvalError: A stage failed. Finished features and judgements are kept.
    """
    from autolora_eval.config.starter import image_set_benchmark, image_set_run_name
    from autolora_eval.generation.image_import import check_no_overlap
    from autolora_eval.generation.image_sets import read_image_set

    loaded = load_benchmark(benchmark, needs_loras=False)
    read_image_set(Path(images))
    path = Path(output or Path("reports") / image_set_run_name(loaded, name))
    check_no_overlap(Path(images), RunFolder(path))
    folder = output_folder(path)
    file = folder.path / "benchmark.yaml"
    text = image_set_benchmark(loaded, Path(images), name, model, file)
    # An existing benchmark.yaml is replaced only after the new one has been checked.
    with writing(folder.path):
        with atomic_write(file) as unproven:
            unproven.write_text(text, encoding="utf-8", newline="\n")
            try:
                tried = RunPipeline(unproven, folder.path, limit_prompts, limit_seeds)
                check_image_sets(tried.plan, folder)
            except UsageError as error:
                raise UsageError(str(error).replace(unproven.name, file.name)) from error
        return RunPipeline(file, folder.path, limit_prompts, limit_seeds, progress).run()


def compare(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    baseline: str | None = None,
    allow_different_judges: bool = False,
) -> tuple[Run, list[DifferenceRecord]]:
    """Join the cells of several runs into one table, paired over their common prompts and seeds.

    Nothing is generated or judged. If several runs have a method of the same name, the name of the
    run is appended, unless all images are identical.

    Args:
        runs: Two or more folders of finished runs.
        output: Folder of the joint run.
        baseline: Method that the others are compared with. Default: the baseline of the first run.
        allow_different_judges: Compare scores even if different judges gave them.

    Returns:
        The joint run, and the differences between the settings of the runs.

    Raises:
        UsageError: The runs cannot be compared: they differ in extractor, rubric or judge, or have
            no prompt or seed in common. Or `output` holds anything but an earlier comparison.
    """
    from autolora_eval.analysis.compare_runs import join_runs

    found = join_runs(
        runs,
        Path(output),
        write_report,
        baseline=baseline,
        allow_different_judges=allow_different_judges,
    )
    return open_run(output), found


class RunPipeline:
    """The stages of one run. Each can be run alone.

    Args:
        benchmark: Path of a YAML file, name of a shipped benchmark, or a run folder.
        output: As in `run`. None for a run folder, which is its own output.
        limit_prompts: As in `run`. Default: as before in a run folder.
        limit_seeds: As in `run`. Default: as before in a run folder.
        progress: As in `run`.
        accept_versions: As in `run`.
        engine: As in `run`.
        ray_address: As in `run`. It implies the engine `ray`.

    Raises:
        UsageError: if the benchmark cannot be used as it stands.
    """

    def __init__(
        self,
        benchmark: str | Path,
        output: str | Path | None = None,
        limit_prompts: int | None = None,
        limit_seeds: int | None = None,
        progress: Progress | None = None,
        accept_versions: bool = False,
        engine: EngineName = "local",
        ray_address: str | None = None,
    ) -> None:
        if (Path(benchmark) / "manifest.json").is_file():
            if output is not None:
                raise UsageError(
                    f"'{benchmark}' is a run folder, which is its own output: leave out --output "
                    f"'{output}', or name the benchmark instead of the run."
                )
            output = Path(benchmark)
            benchmark = RunFolder(output).benchmark_file()
            manifest = RunFolder(output).read_manifest()
            limit_prompts = limit_prompts or manifest.limit_prompts
            limit_seeds = limit_seeds or manifest.limit_seeds
        forget_warnings()
        loaded = load_benchmark(benchmark)
        self.benchmark, self.limits = str(benchmark), (limit_prompts, limit_seeds)
        self.plan = make_plan(loaded, *self.limits)
        self.folder = output_folder(output or Path("reports") / loaded.spec.name)
        self.progress, self.accept_versions = progress or Progress(), accept_versions
        self._ray: RayEngine | None = None
        if engine == "ray" or ray_address:
            from autolora_eval.pipeline.ray_engine import RayEngine

            self._ray = RayEngine(self.plan, self.folder, self.limits, ray_address)
        self._judging = BackgroundJudging(self.folder)
        self._extracting = BackgroundFeatures(self.folder, self.plan)

    def require_manifest(self) -> None:
        """Check that the images of this folder were generated with the settings of the plan.

        Raises:
            UsageError: if they were not.
        """
        command = f"autolora-eval generate {self.benchmark} --output {self.folder.path}"
        manifest = self.folder.find_manifest()
        if manifest is None:
            raise UsageError(f"'{self.folder.path}' has no images yet. Make them with: {command}")
        changed = cells_not_generated(self.plan, manifest)
        if changed:
            raise UsageError(
                f"the images of {', '.join(changed)} in '{self.folder.path}' were made with other "
                f"settings than the benchmark states now, or not at all. Make them with: {command}"
            )

    def run(self) -> Run:
        """Run every stage in order, but not tables and report if their inputs are unchanged.

        Raises:
            AutoLoRAEvalError: if something is missing here, or a stage failed.
        """
        judge = self.plan.benchmark.spec.judge
        with writing(self.folder.path):
            self.check_requirements()
            if self._ray is None:
                self._extracting.settings = feature_settings(self.plan)
                if judge is not None and judge.has_running_server:
                    self._judging.settings = judge_settings(self.plan)
            with self._extracting, self._judging:
                self.generate()
            self.measure()
            if not are_tables_current(self.folder, self.plan.benchmark.published):
                self.tables()
            if not is_report_current(self.folder):
                write_report(self.folder)
            return open_run(self.folder.path)

    def check_requirements(self, *, judged: bool = True) -> None:
        """Check that the run, with or without judging, can be finished here.

        Raises:
            UsageError: if the published values do not fit the benchmark.
            AutoLoRAEvalError: if something is missing. The message says what and how to get it.
        """
        if self.plan.benchmark.published is not None:
            from autolora_eval.analysis.tables import read_published

            read_published(self.plan.benchmark.published, self._planned())
        problems = missing(self.plan, self.folder.path, judged, self.accept_versions)
        if problems:
            listed = "\n".join(f"  - {problem}" for problem in problems)
            name = self.plan.benchmark.spec.name
            raise AutoLoRAEvalError(f"'{name}' cannot run here; nothing was generated.\n{listed}")

    def _planned(self) -> RunManifest:
        return planned_manifest(self.plan, self.folder, self.benchmark, *self.limits)

    def generate(self) -> None:
        """Make the images."""
        check_image_sets(self.plan, self.folder)
        self.folder.write_manifest(self._planned())
        started = time.monotonic()
        machine = HardwareRecord(**hardware(choose_device(self.plan.benchmark.spec.device)))

        def begin(found: GenerationResult) -> None:
            self._record_generated(found)
            self._extracting.start()
            self._judging.start()
            self.folder.update_manifest(packages=package_versions(), hardware=machine)

        elsewhere = self._ray.make_images if self._ray else None
        done = generate(self.plan, self.folder, self.progress, begin, elsewhere)
        self._record_generated(done)
        self._note_times("generate", started, done.made, done.reused)

    def _record_generated(self, found: GenerationResult) -> None:
        """Record models, settings and imported images."""
        manifest = self.folder.read_manifest()
        models = dict(manifest.models)
        for name, facts in found.models.items():
            model = ModelRecord(**facts)
            if name in models:
                update = {field: getattr(model, field) for field in model.model_fields_set}
                model = models[name].model_copy(update=update)
            models[name] = model
        keys = found.settings_keys
        cells = [c.model_copy(update={"settings_key": keys[c.id]}) for c in manifest.cells]
        self.folder.update_manifest(
            models=models,
            image_sets=manifest.image_sets | found.image_sets,
            settings=manifest.settings | found.settings,
            libraries=sorted(found.libraries),
            cells=cells,
        )

    def _note_times(self, stage: str, started: float, done: int, reused: int) -> None:
        """Record the time of a stage, unless it did nothing and an earlier time is recorded."""
        stages = self.folder.read_manifest().stages
        took = timedelta(seconds=time.monotonic() - started)  # the clock may be set meanwhile
        if done or stage not in stages:
            start = (datetime.now(UTC) - took).isoformat(timespec="seconds")
            seconds = round(took.total_seconds(), 1)
            record = StageRecord(started=start, seconds=seconds, done=done, reused=reused)
            self.folder.update_manifest(stages=stages | {stage: record})

    def score(self) -> None:
        """Extract features, judge, and join both into tables."""
        self.measure()
        self.tables()

    def measure(self) -> None:
        """Extract features and judge."""
        self.require_manifest()
        manifest = self._planned()
        self.folder.write_manifest(manifest)
        started, settings = time.monotonic(), feature_settings(self.plan)
        elsewhere = self._ray.extract if self._ray else None
        features = extract_features(settings, manifest, self.folder, self.progress, elsewhere)
        started, features = self._extracting.added_to(started, features)
        self.folder.update_manifest(features=features)
        self._note_times("features", started, features.done, features.reused)
        self._judge()

    def tables(self) -> None:
        """Write scores, table and comparisons."""
        from autolora_eval.analysis.tables import write_tables

        benchmark, folder = self.plan.benchmark, self.folder
        manifest, metrics = folder.read_manifest(), list(benchmark.diversity.values())
        counts = write_tables(manifest, folder, metrics, benchmark.published)
        written = checksums(folder, manifest)
        folder.update_manifest(counts=counts, checksums=written, are_tables_outdated=False)
        folder.update_manifest(tables_key=tables_key(folder, benchmark.published))

    def _judge(self) -> None:
        if self.plan.benchmark.rubric is None:
            self.folder.update_manifest(judge=None)
            return
        started, settings = time.monotonic(), judge_settings(self.plan)
        manifest = self._judging.noted_in(self.folder.read_manifest())
        opened = self._ray.judge if self._ray else open_judge
        judged = judge_missing(settings, manifest, self.folder, self.progress, opened)
        started, judged = self._judging.added_to(started, judged)
        self.folder.update_manifest(judge=judged)
        self._note_times("judge", started, judged.done, judged.reused)
