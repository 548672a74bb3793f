"""The verb submit, which `launch/submit.py` is as well."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vggdist.artifacts.paths import quote
from vggdist.commands.arguments import (
    add_config,
    add_input,
    add_json,
    check_outputs,
    configured,
    positive,
    show,
    write_json,
)
from vggdist.config import split_batch
from vggdist.config_file import to_yaml
from vggdist.errors import ConfigError
from vggdist.slurm.settings import ClusterSettings, load_settings
from vggdist.terminal import counted

if TYPE_CHECKING:
    from vggdist.slurm.job import Payload
    from vggdist.slurm.submit import Submission

DESCRIPTION = """\
Submits a training to SLURM as one job of several nodes, with one rank for each GPU. Before its time
limit, and when others take its nodes, the ranks save a checkpoint at one step, and the job starts
again by itself and continues. The same command again continues a training that has ended.

What belongs to the cluster (partition, account, time limit ...) comes from flags or from a YAML
file of its own: --cluster FILE, else ~/.config/vggdist/cluster.yaml. Its keys are the flags' names
with _ for -, such as cpus_per_rank, and setup, a list of shell lines such as `module load cuda`.
"""

EXAMPLES = """\
examples:
  vggdist submit --config configs/vgg_d.yaml --nodes 4 --gpus-per-node 8 --partition gpu \\
      data.root=/data/imagenet
  vggdist submit --config configs/vgg_d.yaml --nodes 4 --gpus-per-node 8 --dry-run
  vggdist submit --config configs/quickstart.yaml --ranks-per-node 2 --local

Nothing is started with --dry-run; it needs neither SLURM nor the data.
"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    parser = verbs.add_parser(
        "submit",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog=EXAMPLES,
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is trained, on what, and whether it is submitted at all."""
    add_config(parser)
    add_cluster_flags(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print configuration, world size, batch arithmetic and, unless it runs here, sbatch's "
        "script; and stop",
    )
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--local",
        action="store_true",
        help="run the same job in processes of this machine, all nodes folded into it",
    )
    ways.add_argument("--debug", action="store_true", help="run it in this process, as one rank")
    parser.add_argument("--job-name", metavar="NAME", help="default: the run folder's name")
    add_json(parser)


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Nodes, ranks, their code, and a flag for each of `ClusterSettings` but `setup`."""
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--ranks-per-node",
        type=positive,
        metavar="N",
        help="ranks on each node (default: one for each GPU, else 1)",
    )
    parser.add_argument(
        "--allow-code-change",
        action="store_true",
        help="let later attempts run vggdist as it is then; by default they refuse other code than "
        "there was at the submission",
    )
    cluster = parser.add_argument_group("settings of the cluster")
    add_input(
        cluster,
        "--cluster",
        metavar="FILE",
        help="YAML file of these settings (default: ~/.config/vggdist/cluster.yaml); flags win",
    )
    for name, field in ClusterSettings.model_fields.items():
        if name == "setup":
            continue
        types = get_args(field.annotation) or (field.annotation,)
        options: dict[str, Any] = {}
        if bool in types:
            options = {"action": "store_true", "default": None}
        elif number := next((kind for kind in (int, float) if kind in types), None):
            options = {"type": number, "metavar": "N"}
        default = f" (default: {field.default})" if field.default else ""
        flag, text = f"--{name.replace('_', '-')}", f"{field.description}{default}"
        cluster.add_argument(flag, help=text, **options)


def make_submission(
    arguments: argparse.Namespace, name: str, folder: Path, *payloads: "Payload"
) -> "Submission":
    """What the flags of `add_cluster_flags` ask for, with its job folder.

    Raises:
        ConfigError: lists every problem of the flags and of the file of --cluster.
    """
    from vggdist.slurm import submit

    settings = load_settings(arguments.cluster, vars(arguments))
    return submit.Submission(
        name=name,
        payloads=payloads,
        layout=submit.make_layout(arguments.nodes, arguments.ranks_per_node, settings),
        settings=settings,
        folder=folder,
        command=submit.typed_command(),
        allow_code_change=arguments.allow_code_change,
    )


def run(arguments: argparse.Namespace) -> int:
    """Submits, or shows what it would submit, or runs it here; returns the exit code."""
    from vggdist.slurm.job import TrainingPayload
    from vggdist.slurm.submit import Layout

    check_outputs(arguments)
    config = configured(arguments)
    folder = Path(config.run_folder)
    payload = TrainingPayload(config.model_dump(mode="json"))
    name = arguments.job_name or folder.name
    submission = make_submission(arguments, name, folder / "jobs", payload)
    layout = Layout(1, 1, 0) if arguments.debug else submission.layout
    if arguments.debug and not arguments.dry_run:  # without submitit or a job folder
        from vggdist.training.signals import StopSignal

        with StopSignal() as stop:
            return payload.run(stop)
    split = split_batch(config.batch, layout.world_size)
    summary: dict[str, Any] = {
        **asdict(layout),
        "cpus_per_rank": submission.cpus_per_rank,
        "world_size": layout.world_size,
        "global_batch": split.global_batch,
        "accumulation_steps": split.accumulation_steps,
        "micro_batch": split.micro,
        "run_folder": str(folder),
        "job_folder": str(submission.folder),
    }
    if layout.gpus_per_node and config.micro_follows_memory:  # which is seen where they are
        summary |= {"accumulation_steps": None, "micro_batch": None}
    if arguments.dry_run:
        return _preview(arguments, submission, summary, to_yaml(config))
    return (_run_local if arguments.local else _submit)(arguments, submission, summary)


def _render(summary: dict[str, Any]) -> str:
    gpu = "a GPU and " if summary["gpus_per_node"] else ""
    if summary["micro_batch"] is None:
        images = summary["global_batch"] // summary["world_size"]
        share = f"{counted(images, 'image')}, in micro batches as the GPUs' memory allows"
    else:
        steps = counted(summary["accumulation_steps"], "micro batch", "micro batches")
        share = f"{steps} x {counted(summary['micro_batch'], 'image')}"
    return (
        f"world size {summary['world_size']} = {counted(summary['nodes'], 'node')} x "
        f"{counted(summary['ranks_per_node'], 'rank')}, each with {gpu}"
        f"{counted(summary['cpus_per_rank'], 'CPU')}\n"
        f"global batch {summary['global_batch']} = {counted(summary['world_size'], 'rank')} x "
        f"{share}\n"
        f"run folder {quote(summary['run_folder'])}, job folder {quote(summary['job_folder'])}\n"
    )


def _preview(
    arguments: argparse.Namespace,
    submission: "Submission",
    summary: dict[str, Any],
    configuration: str,
) -> int:
    from vggdist.slurm.submit import sbatch_text

    text = f"{_render(summary)}{_where(arguments, summary)}\n# configuration\n{configuration}\n"
    answer: dict[str, Any] = {"submitted": False, "configuration": configuration}
    if not (arguments.local or arguments.debug):
        answer["sbatch"] = sbatch_text(submission)
        text += f"# sbatch\n{answer['sbatch']}\n"
    show(f"{text}Nothing was started (--dry-run).\n", summary | answer, arguments.json)
    return 0


def _where(arguments: argparse.Namespace, summary: dict[str, Any]) -> str:
    """A line where all ranks of several nodes share this machine; else nothing."""
    if not arguments.local or summary["nodes"] == 1:
        return ""
    return f"all {summary['world_size']} ranks of {summary['nodes']} nodes run on this machine\n"


def _submit(
    arguments: argparse.Namespace, submission: "Submission", summary: dict[str, Any]
) -> int:
    from vggdist.slurm.queue import require_slurm
    from vggdist.slurm.submit import running_jobs, submit

    require_slurm()
    for job, state in running_jobs(submission.folder).items():
        raise ConfigError(
            f"job {job} ({state}) is training in {quote(summary['run_folder'])} already; wait for "
            f"it, end it with `scancel {job}`, or choose another run.folder."
        )
    (job,) = submit(submission)
    log = submission.folder / f"{job}_0_log.err"
    text = (
        f"{_render(summary)}job {job} is submitted; `squeue --job {job}` shows it, "
        f"`scancel {job}` ends it, and it is followed by\n  tail -F {quote(log)}\n"
    )
    show(text, summary | {"submitted": True, "job": job, "log": str(log)}, arguments.json)
    return 0


def _run_local(
    arguments: argparse.Namespace, submission: "Submission", summary: dict[str, Any]
) -> int:
    from vggdist.slurm.submit import run_local

    sys.stdout.write(_render(summary) + _where(arguments, summary))
    sys.stdout.flush()
    limit = submission.settings.timeout_minutes if arguments.time is not None else None
    exit_code = run_local(submission, limit)
    if arguments.json is not None:
        write_json(summary | {"submitted": False, "exit_code": exit_code}, arguments.json)
    return exit_code
