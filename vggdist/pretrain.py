"""One rank of a training: builds everything from a `Config`, trains, and reports the result."""

import itertools
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path

from vggdist.artifacts import checkpoint, run_folder
from vggdist.artifacts.paths import quote
from vggdist.artifacts.weights import Description
from vggdist.config import (
    BatchSplit,
    Config,
    scaled_learning_rate,
    split_batch,
    total_steps,
    with_classes,
)
from vggdist.data.glance import require_whole
from vggdist.data.loader import EvaluationLoader, TrainingLoader, open_training_loader
from vggdist.data.manifest import Dataset, Manifest
from vggdist.distributed import process as world
from vggdist.distributed import srun
from vggdist.distributed.entry import PYTHON_WARNINGS
from vggdist.distributed.precision import DTYPES, resolve_precision
from vggdist.distributed.process import Process
from vggdist.distributed.rank import on_main, run_rank
from vggdist.errors import EXIT_STOPPED, CheckpointError
from vggdist.evaluation.evaluator import evaluate
from vggdist.evaluation.metrics import TOP5, Errors
from vggdist.model.initialization import build_trainable
from vggdist.training.bad_images import KnownBad
from vggdist.training.dataset import TrainingData, announce_data, copy_to_node, open_training_data
from vggdist.training.engine import Engine
from vggdist.training.flags import end_if_asked, until_stopped
from vggdist.training.loop import Training
from vggdist.training.metrics import LogFile, MetricLog
from vggdist.training.micro_batch import resolve_micro
from vggdist.training.pictures import Pictures
from vggdist.training.profile import StepProfile, choose_steps
from vggdist.training.report import PREDICTIONS_FILE, draw_predictions, print_result, write_result
from vggdist.training.schedule import Schedule
from vggdist.training.signals import StopSignal
from vggdist.training.start_texts import announce_training, render_choices, start_texts
from vggdist.training.zero import build_engine

logger = logging.getLogger("vggdist")

NUM_PREDICTIONS = 40
RESTART_PATIENCE_SECONDS = 120.0
"""How long a restarted SLURM job waits for the end of its last attempt."""


def run(config: Config, stop: StopSignal | None = None, profiled: int | range | None = None) -> int:
    """`pretrain` in its own process; returns the exit code."""
    return run_rank(lambda: pretrain(config, stop, profiled))


def pretrain(
    config: Config, stop: StopSignal | None = None, profiled: int | range | None = None
) -> int:
    """Trains (or continues, or only reports a finished training) on this rank.

    Args:
        stop: a handler that is already active; None: one starts when the ranks have joined.
        profiled: steps to record, or how many of them, as `choose_steps` takes it.

    Returns:
        The exit code: 0 if the training is finished, `EXIT_STOPPED` after a signal.

    Raises:
        VggdistError: a problem that the user can solve.
    """
    with ExitStack() as stack:
        process = stack.enter_context(world.joined(config.device))
        # Not sooner: a library that waits for other ranks would not react to a signal.
        stop = stop or stack.enter_context(StopSignal(speaks=process.is_main))
        split_batch(config.batch, process.world_size)  # refuses what cannot be shared
        folder = Path(config.run_folder)
        undo = ExitStack()  # ends with what is new if no step is taken
        patience = RESTART_PATIENCE_SECONDS if srun.num_restarts(os.environ) else 0.0
        start = world.from_main(
            on_main(process, stop.run, run_folder.enter, config, folder, stack, undo, patience)
        )
        before = run_folder.config_before(start, folder) if process.is_main else None
        before = world.from_main(before)
        config, why = resolve_precision(config, process, before.set_precision if before else None)
        saved = _load_checkpoint(start, process)
        data = open_training_data(config, folder, process, saved, stop, undo)
        config = with_classes(config, len(data.dataset.train.classes))
        config, why_micro = resolve_micro(config, process, before)
        split = split_batch(config.batch, process.world_size)
        end_if_asked(stop, process)
        dataset = copy_to_node(data.dataset, config.data.local_folder, process, stop)
        require_whole([dataset.val], process)
        first_step = saved.step if saved else 0
        num_steps = total_steps(config, dataset.train.num_images)
        profile = None
        if profiled is not None:
            profile = StepProfile(choose_steps(profiled, first_step, num_steps), folder, process)
        # After all checks have passed: later starts must agree with these files.
        on_main(process, _open_log, config, folder, stack)
        if profile is not None:  # behind the log, which its table belongs to
            stack.callback(profile.close)
        if process.is_main:
            announce_training(config, split, dataset, folder)
            announce_data(data, folder)
        network = build_trainable(config, fresh=saved is None)
        earlier = saved.state.get("exchange") if saved else None
        engine = build_engine(network, config, split, process, earlier)
        choices = (why, why_micro), engine.factored, engine.compiled
        logger.info("%s", render_choices(config, process, *choices))
        if first_step < num_steps:
            num_bytes, keep = engine.checkpoint_bytes, config.checkpoint.keep
            on_main(process, run_folder.require_space, folder, num_bytes, keep)
        log = on_main(process, _open_curves, config, folder, first_step, process, stack)
        data = replace(data, dataset=dataset)
        training = _build_training(
            config, process, split, engine, data, log, folder, profile, stack
        )
        if saved is not None:
            training.load(saved)
            logger.info("continuing from step %d of %s", saved.step, quote(folder))
        end_if_asked(stop, process)
        undo.pop_all()
        if not training.train(stop):
            logger.info("stopped at step %d; the same command continues.", training.step)
            return EXIT_STOPPED
        if log is not None:
            log.write_end(training.step)
        _report(training, config, dataset.val, folder)
    return 0


def _open_log(config: Config, folder: Path, stack: ExitStack) -> None:
    """Writes the configuration, and from now on the log, to the run folder."""
    run_folder.prepare(config, folder)
    try:
        handler = LogFile(folder)
    except OSError as error:
        raise run_folder.not_writable(folder, error) from error
    stack.callback(handler.close)
    for source in (logger, PYTHON_WARNINGS):
        source.addHandler(handler)
        stack.callback(source.removeHandler, handler)


def _open_curves(
    config: Config, folder: Path, first_step: int, process: Process, stack: ExitStack
) -> MetricLog:
    try:
        log = stack.enter_context(
            MetricLog(folder, first_step, has_top5=config.model.fc8_width > TOP5)
        )
    except OSError as error:
        raise run_folder.not_writable(folder, error) from error
    log.write_start(config, process.device.type, start_texts(config, process.device))
    return log


def _load_checkpoint(path: Path | None, process: Process) -> checkpoint.Checkpoint | None:
    """Loads a checkpoint on all ranks, which must see the same folder."""
    if path is None:
        return None
    saved, problem = None, None
    try:
        saved = checkpoint.load(path)
    except CheckpointError as error:
        problem = error
    if not world.all_agree(problem is None, process.device):
        raise problem or CheckpointError(
            f"another rank could not read {quote(path)}; the run folder must be on a file system "
            "that every node sees."
        )
    return saved


def _build_training(
    config: Config,
    process: Process,
    split: BatchSplit,
    engine: Engine,
    data: TrainingData,
    log: MetricLog | None,
    folder: Path,
    profile: StepProfile | None,
    stack: ExitStack,
) -> Training:
    """The training; the loader of its evaluations is closed with `stack`."""
    dataset = data.dataset
    num_images = dataset.train.num_images
    known_bad = KnownBad(dataset.train, config.data.max_unusable)

    def open_batches(first_step: int) -> TrainingLoader:
        return open_training_loader(
            config,
            dataset.train,
            split,
            process,
            first_step,
            known_bad=lambda: known_bad.images,
            max_bad=known_bad.limit,
        )

    @cache
    def open_validation() -> EvaluationLoader:
        # Once: an evaluation finds its first batches made, and has no pipelines to build.
        loader = _evaluation_loader(config, process, split, dataset.val, repeats=True)
        return stack.enter_context(loader)

    def evaluate_all(stop: StopSignal) -> Errors:
        images, loader = dataset.val, open_validation()
        batches = itertools.islice(loader, loader.num_batches)
        shown = until_stopped(batches, loader.num_rounds, stop, process.device)
        num_classes, num_mistakes = len(images.classes), config.log.num_mistakes
        return evaluate(engine, shown, images.num_images, num_classes, process.device, num_mistakes)

    def open_crops(only: Sequence[int]) -> EvaluationLoader:
        return _evaluation_loader(config, process, split, dataset.val, only)

    schedule = Schedule(
        config.schedule,
        scaled_learning_rate(config),
        num_images / split.global_batch,
        total_steps(config, num_images),
    )
    pictures = None
    if log is not None:
        classes, num_fed = dataset.val.classes, config.log.num_images
        pictures = Pictures(log, classes, config.data, num_fed, open_crops)
    return Training(
        config,
        process,
        split,
        engine,
        schedule,
        num_images=num_images,
        open_batches=open_batches,
        evaluate=evaluate_all,
        data_digests=data.digests,
        known_bad=known_bad,
        log=log,
        run_folder=folder,
        description=_describe(config, dataset),
        profile=profile,
        pictures=pictures,
    )


def _describe(config: Config, dataset: Dataset) -> Description:
    """The description of this training's network for a weights file."""
    data = config.data
    return Description(
        config.model,
        data.crop_size,
        data.mean,
        data.std,
        (data.train_scale_min, data.train_scale_max),
        dataset.train.classes,
        "trained by vggdist",
        data.orientation,
    )


def _evaluation_loader(
    config: Config,
    process: Process,
    split: BatchSplit,
    images: Manifest,
    only: Sequence[int] | None = None,
    repeats: bool = False,
) -> EvaluationLoader:
    """Centre crops of this rank's share; with `only`, of these images, all on this rank."""
    return EvaluationLoader(
        images,
        config.data,
        scale=config.data.evaluation_scale,
        batch_size=config.evaluation.micro or split.micro,
        only=only,
        repeats=repeats,
        rank=0 if only else process.rank,
        world_size=1 if only else process.world_size,
        device=process.device,
        dtype=DTYPES[config.resolved_precision],
        num_threads=config.data.num_threads or process.num_cores,
    )


def _report(training: Training, config: Config, val: Manifest, folder: Path) -> None:
    """Writes and prints the results on the main rank."""
    if not training.process.is_main:
        return
    training.engine.eval()
    count = min(NUM_PREDICTIONS, val.num_images)
    only = [i * val.num_images // count for i in range(count)]
    try:
        result = write_result(training, val.classes, folder)
        with _evaluation_loader(config, training.process, training.split, val, only) as batches:
            sheet = draw_predictions(training.engine, batches, val.classes, config.data.mean)
        sheet.save(folder / PREDICTIONS_FILE)
    except OSError as error:
        raise CheckpointError(
            f"the training is finished and its checkpoint is kept, but the results in {folder} "
            f"cannot be written: {error}. Free space there; the same command writes them."
        ) from error
    if training.log is not None:
        training.log.write_picture("predictions", sheet, training.step)
    print_result(result, folder)
