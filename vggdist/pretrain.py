"""One rank of a training: builds everything from a `Config`, trains, and reports the result."""

import logging
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from vggdist.artifacts import checkpoint, run_folder
from vggdist.artifacts.paths import quote
from vggdist.artifacts.run_files import CHECKPOINTS
from vggdist.artifacts.weights import Description, Weights, load_weights
from vggdist.config import (
    BatchSplit,
    Config,
    Precision,
    scaled_learning_rate,
    split_batch,
    total_steps,
    trained_layers,
)
from vggdist.config_file import to_yaml
from vggdist.data import local_copy
from vggdist.data.glance import require_whole
from vggdist.data.loader import EvaluationLoader, TrainingLoader, open_training_loader
from vggdist.data.manifest import Dataset, Manifest
from vggdist.distributed import process as world
from vggdist.distributed import slurm
from vggdist.distributed.precision import DTYPES, resolve_precision
from vggdist.distributed.process import Process
from vggdist.distributed.rank import on_main, run_rank
from vggdist.errors import (
    EXIT_STOPPED,
    CheckpointError,
    ConfigError,
    DataError,
    StoppedError,
)
from vggdist.evaluation.evaluator import evaluate
from vggdist.evaluation.metrics import Errors
from vggdist.model.initialization import build_initialized, copy_trained, freeze
from vggdist.model.vgg import VGG
from vggdist.training.bad_images import KnownBad
from vggdist.training.dataset import TrainingData, announce_data, open_training_data
from vggdist.training.engine import Engine
from vggdist.training.flags import until_stopped
from vggdist.training.loop import Training
from vggdist.training.metrics import LogFile, MetricLog
from vggdist.training.report import PREDICTIONS_FILE, draw_predictions, print_result, write_result
from vggdist.training.schedule import Schedule
from vggdist.training.signals import StopSignal

logger = logging.getLogger("vggdist")

NUM_PREDICTIONS = 40
RESTART_PATIENCE_SECONDS = 120.0
"""How long a restarted SLURM job waits for the end of its last attempt."""


def run(config: Config, stop: StopSignal | None = None) -> int:
    """`pretrain` in its own process; returns the exit code."""
    return run_rank(lambda: pretrain(config, stop))


def pretrain(config: Config, stop: StopSignal | None = None) -> int:
    """Trains (or continues, or only reports a finished training) on this rank.

    Args:
        stop: a handler that is already active; None: one starts when the ranks have joined.

    Returns:
        The exit code: 0 if the training is finished, `EXIT_STOPPED` after a signal.

    Raises:
        VggdistError: a problem that the user can solve.
    """
    with ExitStack() as stack:
        process = stack.enter_context(world.joined(config.device))
        # Not sooner: a library that waits for other ranks would not react to a signal.
        stop = stop or stack.enter_context(StopSignal(speaks=process.is_main))
        split = split_batch(config.batch, process.world_size)
        folder = Path(config.run_folder)
        made: list[Path] = []
        opening = partial(_open_folder, config, folder, stack, made)
        start = on_main(process, partial(stop.run, opening))
        config, why = resolve_precision(config, process, _precision_of_run(start, folder, process))
        saved = _load_checkpoint(config, start, process)
        data = open_training_data(config, folder, process, saved, stop, made)
        _end_if_asked(stop, process)
        dataset = _copy_to_node(config, data.dataset, process, stop)
        require_whole(dataset.val, process)
        # After all checks have passed: later starts must agree with these files.
        on_main(process, partial(_open_log, config, folder, stack))
        if process.is_main:
            _announce(config, process, split, dataset)
            announce_data(data, folder)
            logger.info(why)
        engine = Engine(_build_network(config, fresh=saved is None), config, split, process)
        first_step = saved.step if saved else 0
        if first_step < total_steps(config, dataset.train.num_images):
            require = partial(run_folder.require_space, folder, engine.checkpoint_bytes)
            on_main(process, partial(require, config.checkpoint.keep))
        log = on_main(process, partial(_open_curves, config, folder, first_step, stack))
        data = replace(data, dataset=dataset)
        training = _build_training(config, process, split, engine, data, log, folder)
        if saved is not None:
            training.load(saved)
            logger.info("continuing from step %d of %s", saved.step, quote(folder))
        _end_if_asked(stop, process)
        made.clear()
        if not training.train(stop):
            logger.info("stopped at step %d; the same command continues.", training.step)
            return EXIT_STOPPED
        _report(training, config, dataset.val, folder)
    return 0


def _end_if_asked(stop: StopSignal, process: Process) -> None:
    """Ends all ranks if any has received a signal before there was anything to save."""
    if not world.all_agree(not stop.requested, process.device):
        raise StoppedError("stopped before a step was taken; the same command starts again.")


def _open_log(config: Config, folder: Path, stack: ExitStack) -> None:
    """Writes the configuration, and from now on the log, to the run folder."""
    run_folder.prepare(config, folder)
    try:
        handler = LogFile(folder)
    except OSError as error:
        raise run_folder.not_writable(folder, error) from error
    logger.addHandler(handler)
    stack.callback(handler.close)
    stack.callback(logger.removeHandler, handler)


def _open_curves(config: Config, folder: Path, first_step: int, stack: ExitStack) -> MetricLog:
    try:
        log = stack.enter_context(MetricLog(folder, first_step))
    except OSError as error:
        raise run_folder.not_writable(folder, error) from error
    log.write_text("config", to_yaml(config))
    return log


def _announce(config: Config, process: Process, split: BatchSplit, dataset: Dataset) -> None:
    """Logs the numbers derived from the configuration, before the first step."""
    steps = total_steps(config, dataset.train.num_images)
    logger.info(
        "%s; %d classes, %d training and %d validation images",
        quote(str(config.data.root)),
        len(dataset.train.classes),
        dataset.train.num_images,
        dataset.val.num_images,
    )
    logger.info(
        "global batch %d = %d ranks x %d micro batches x %d images; %d steps, %.1f epochs; "
        "%s on %s",
        split.global_batch,
        split.world_size,
        split.accumulation_steps,
        split.micro,
        steps,
        steps * split.global_batch / dataset.train.num_images,
        config.resolved_precision,
        process.device,
    )
    if dataset.train.quarantine:
        logger.info(
            "%d training images are in quarantine; the sample plan replaces them",
            len(dataset.train.quarantine),
        )


def _open_folder(config: Config, folder: Path, stack: ExitStack, made: list[Path]) -> Path | None:
    """Takes the run folder for this job; the checkpoint to continue from, if any.

    If an error before the first step ends `stack`, the paths in `made` are removed.
    """
    restarted = slurm.num_restarts(os.environ) > 0
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    stack.enter_context(run_folder.lock(folder, RESTART_PATIENCE_SECONDS if restarted else 0.0))
    made += new
    stack.callback(_remove, folder, made)
    return run_folder.choose_checkpoint(config, folder)


def _remove(run_folder: Path, paths: list[Path]) -> None:
    """Removes files, the run folder with its contents, and parent folders left empty."""
    for path in paths:
        if path == run_folder:
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir():
            with suppress(OSError):  # it holds something else
                path.rmdir()
        else:
            path.unlink(missing_ok=True)


def _precision_of_run(start: Path | None, folder: Path, process: Process) -> Precision | None:
    """The precision of the training that is continued, if any."""
    precision = run_folder.precision_of_training(start, folder) if process.is_main else None
    return world.gather(precision)[0]


def _copy_to_node(config: Config, dataset: Dataset, process: Process, stop: StopSignal) -> Dataset:
    """The data set, copied to a local disk if configured; one rank per node copies."""
    if config.data.local_folder is None:
        return dataset
    folder = Path(config.data.local_folder)
    local = local_copy.local_dataset(dataset, folder)
    with ThreadPoolExecutor(1) as pool:
        cancelled = threading.Event()
        copying = (
            pool.submit(local_copy.copy_shards, dataset, folder, cancelled)
            if process.local_rank == 0
            else None
        )
        try:
            # The ranks synchronize often: hours in one collective would look like a hang.
            while not world.all_agree(_is_over(copying), process.device):
                _end_if_asked(stop, process)
        except BaseException:
            cancelled.set()  # the pool waits for copies in progress
            raise
        problem = copying.exception() if copying is not None else None
    if not world.all_agree(problem is None, process.device):
        raise problem or DataError(
            "another node could not copy the shards to its data.local_folder; its message says why."
        )
    return local


def _is_over(future: Future[None] | None) -> bool:
    """Whether the work is done; waits for it for a few seconds."""
    return future is None or bool(wait([future], timeout=5).done)


def _load_checkpoint(
    config: Config, start: Path | None, process: Process
) -> checkpoint.Checkpoint | None:
    """Loads the main rank's choice on all ranks, which must see the same folder."""
    if config.run.resume in ("auto", "never"):
        step = int(start.name.removeprefix("step-")) if start is not None else -1
        step = world.from_main(step, process.device)
        if step < 0:
            return None
        path = Path(config.run_folder) / CHECKPOINTS / f"step-{step:08d}"
    else:
        path = Path(config.run.resume)
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


def _build_network(config: Config, fresh: bool) -> VGG:
    """The network with its initial weights; a checkpoint is loaded later.

    Layers that are not trained are frozen.
    """
    network = build_initialized(config.model, config.data.crop_size, config.seed)
    random = _copy_weights(config, network) if fresh else ()
    trained = trained_layers(config)
    frozen = [name for name in config.model.weight_layers() if name not in trained]
    useless = [name for name in frozen if name in random]
    if useless:
        raise ConfigError(
            f"optimizer.trained_layers leaves out {', '.join(useless)}, which would stay random; "
            "set model.initialize_from to a trained network that has them, or train them too."
        )
    if frozen:
        logger.info("trained: %s; frozen: %s", ", ".join(trained), ", ".join(frozen))
    freeze(network, trained)
    return network


def _copy_weights(config: Config, network: VGG) -> tuple[str, ...]:
    """Copies matching layers of `model.initialize_from`; returns the layers that stay random."""
    if config.model.initialize_from is None:
        return config.model.weight_layers()
    path = run_folder.weights_file(config.model.initialize_from)
    trained = load_weights(path)
    _require_same_input(config, trained)
    report = copy_trained(network, trained.tensors)
    logger.info(
        "copied from %s: %s; random: %s",
        quote(path),
        ", ".join(f"{own} <- {source}" for own, source in report.copied),
        ", ".join(report.random) or "nothing",
    )
    return report.random


def _require_same_input(config: Config, trained: Weights) -> None:
    """Refuses another pixel normalization than the copied layers were trained with."""
    given = trained.description
    if (given.mean, given.std) != (config.data.mean, config.data.std):
        mean, std = (f"[{', '.join(map(str, values))}]" for values in (given.mean, given.std))
        raise ConfigError(
            f"model.initialize_from: the network in {quote(trained.path)} was trained on pixels "
            f"less {mean}, divided by {std}, and this one would be fed others; set "
            f"data.mean='{mean}' data.std='{std}'."
        )


def _build_training(
    config: Config,
    process: Process,
    split: BatchSplit,
    engine: Engine,
    data: TrainingData,
    log: MetricLog | None,
    folder: Path,
) -> Training:
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

    def evaluate_all(stop: StopSignal) -> Errors:
        images = dataset.val
        with _evaluation_loader(config, process, split, images) as batches:
            shown = until_stopped(batches, batches.num_rounds, stop, process.device)
            return evaluate(engine, shown, images.num_images, process.device)

    schedule = Schedule(
        config.schedule,
        scaled_learning_rate(config),
        num_images / split.global_batch,
        total_steps(config, num_images),
    )
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
    )


def _evaluation_loader(
    config: Config,
    process: Process,
    split: BatchSplit,
    images: Manifest,
    only: Sequence[int] | None = None,
) -> EvaluationLoader:
    """Centre crops of this rank's share; with `only`, of these images, all on this rank."""
    return EvaluationLoader(
        images,
        config.data,
        scale=config.data.evaluation_scale,
        batch_size=config.evaluation.micro or split.micro,
        only=only,
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
        result = write_result(training, folder)
        with _evaluation_loader(config, training.process, training.split, val, only) as batches:
            draw_predictions(
                training.engine, batches, val.classes, config.data.mean, folder / PREDICTIONS_FILE
            )
    except OSError as error:
        raise CheckpointError(
            f"the training is finished and its checkpoint is kept, but the results in {folder} "
            f"cannot be written: {error}. Free space there; the same command writes them."
        ) from error
    print_result(result, folder)
