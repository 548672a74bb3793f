"""The verb experiment: staged experiments on a cluster or on this machine."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from vggdist.artifacts.paths import quote
from vggdist.commands.arguments import add_input, add_json, check_outputs, show
from vggdist.slurm.commands import add_cluster_flags, make_submission

if TYPE_CHECKING:
    from vggdist.experiments.stages import Experiment

DESCRIPTION = """\
A staged experiment is a YAML file of trainings that begin from each other's networks, evaluations
of them, and reports. configs/experiments/paper.yaml holds all of the paper's.
"""

RUN_DESCRIPTION = """\
Prints what is missing and what it will take, then submits it to SLURM: every stage is a job that
waits for the jobs of the stages that it needs, and stages that are alike are one array. The same
command again submits only what is missing or has failed; what is done, runs or is queued is left
alone. A stage that fails holds back only what needs it.

FILE is the experiment's file or, once it was run, its folder. In the file, paths of configurations
are seen from the file, folder and data from where the command is run.

  folder: runs/mine                     a run folder for every training, and all else
  data: /data/imagenet                  the data set
  set: {precision: fp16}                sections of a configuration, for all trainings
  stages:
    a: {config: ../vgg_a.yaml}          a training
    d:                                  one that starts from the layers of another
      config: ../vgg_d.yaml
      start: a
      set: {optimizer: {learning_rate: 5e-3}}
    rates:                              a sweep: trainings that differ, and a table of them
      config: ../vgg_b.yaml
      sweep: [optimizer.learning_rate=0.01, optimizer.learning_rate=0.02 batch.global=512]
    test_d: {evaluate: d, protocols: [dense, multi-crop], scales: [224, 256, 288]}
    tables: {report: [test_d]}

Every key may be given on the command line: data=/data/imagenet, set.precision=bf16,
stages.d.set.optimizer.learning_rate=0.01; glorot=true begins at random what would start from a
network of another configuration.
"""

RUN_EXAMPLES = """\
examples:
  vggdist experiment run configs/experiments/paper.yaml data=/data/imagenet --nodes 2 \\
      --gpus-per-node 8 --partition gpu
  vggdist experiment run configs/experiments/paper.yaml data=/data/imagenet --gpus-per-node 8 \\
      --dry-run --json plan.json
  vggdist experiment run configs/experiments/small.yaml --local

--dry-run stops after the table; it needs neither SLURM nor the data.
"""

STATUS_DESCRIPTION = """\
Shows how far every stage is, from its files and from SLURM's queue:

  waiting   for stages that it needs, or to be run
  queued    in SLURM's queue, with SLURM's reason
  running   epoch, errors, time that is left
  stopped   by a signal, after a checkpoint; `experiment run` continues it
  done      errors: of a training those of its last evaluation, of an evaluation those of the mean
            of its posteriors files
  failed    the last error in its log

and for every sweep a table, the lowest error first.
"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    experiment = verbs.add_parser(
        "experiment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
    )
    actions = experiment.add_subparsers(required=True, metavar="ACTION")
    run = actions.add_parser(
        "run",
        help="run what is missing",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=RUN_DESCRIPTION,
        epilog=RUN_EXAMPLES,
    )
    _add_experiment(run)
    run.add_argument("--dry-run", action="store_true", help="print what it will take, and stop")
    run.add_argument(
        "--local",
        action="store_true",
        help="run the stages in order in processes of this machine, all nodes folded into it",
    )
    run.add_argument(
        "--teraflops",
        type=_speed,
        metavar="X",
        help="10^12 operations a second that a rank sustains, for the estimate (default: 100 on a "
        "GPU, 0.2 on a CPU)",
    )
    add_cluster_flags(run)
    run.set_defaults(run=_run)
    status = actions.add_parser(
        "status",
        help="how far every stage is",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=STATUS_DESCRIPTION,
        epilog="examples: vggdist experiment status configs/experiments/paper.yaml\n"
        "          vggdist experiment status runs/paper --json status.json",
    )
    _add_experiment(status)
    status.set_defaults(run=_status)


def _speed(text: str) -> float:
    if not 0 < (speed := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no speed above 0")
    return speed


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    add_input(parser, "experiment", metavar="FILE", help="an experiment's file, or its folder")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="on top of the file, such as data=ROOT"
    )
    add_json(parser)


def _load(arguments: argparse.Namespace) -> "Experiment":
    from vggdist.experiments.schema import load_experiment

    experiment = load_experiment(arguments.experiment, arguments.overrides)
    roots = {training.config.data.root for training in experiment.trainings}
    check_outputs(arguments, [root for root in roots if root is not None])
    return experiment


def _status(arguments: argparse.Namespace) -> int:
    from vggdist.experiments.status import read_status
    from vggdist.experiments.tables import render_status, status_to_dict

    experiment = _load(arguments)
    statuses = read_status(experiment)
    text = render_status(experiment, statuses)
    show(text, status_to_dict(experiment, statuses), arguments.json)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from vggdist.config_file import raise_problems
    from vggdist.experiments import runner
    from vggdist.experiments.estimate import estimate
    from vggdist.experiments.stages import JOB_FOLDER
    from vggdist.experiments.status import read_status
    from vggdist.experiments.tables import render_estimate, render_status
    from vggdist.slurm.queue import require_slurm

    experiment = _load(arguments)
    template = make_submission(arguments, experiment.name, experiment.folder / JOB_FOLDER)
    layout = template.layout
    statuses = read_status(experiment)
    wanted = runner.missing(statuses)
    on_gpus = layout.gpus_per_node > 0
    costs = estimate(experiment, wanted, layout.world_size, on_gpus, arguments.teraflops)
    problems = runner.problems(experiment, wanted, layout)
    answer = {
        "experiment": experiment.name,
        "folder": str(experiment.folder),
        "problems": problems,
        **costs.to_dict(),
    }
    text = render_estimate(experiment, statuses, costs)
    if arguments.dry_run:
        lines = [text, *(f"in the way: {sentence}" for sentence in problems)]
        show("\n".join([*lines, "Nothing was started (--dry-run)."]), answer, arguments.json)
        return 0
    _say(text)
    if problems:
        raise_problems(problems, f"the experiment {experiment.name}")
    if arguments.local:
        seconds = {
            stage.stage: 3600 * stage.device_hours / layout.world_size for stage in costs.stages
        }
        exit_code = runner.run_here(experiment, statuses, template, _say, seconds)
        text = render_status(experiment, read_status(experiment))
        show(text, answer | {"exit_code": exit_code}, arguments.json)
        return exit_code
    require_slurm()
    jobs = runner.submit_missing(experiment, statuses, template, _say)
    folder = quote(experiment.folder)
    text = f"`vggdist experiment status {folder}` shows how far they are."
    show(text if jobs else "Nothing is missing.", answer | {"submitted": jobs}, arguments.json)
    return 0


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
