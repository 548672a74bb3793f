"""The verb submit, which `launch/submit.py` is as well."""

import argparse
import sys
from pathlib import Path
from typing import Any

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
from vggdist.config import Config, split_batch
from vggdist.config_file import to_yaml

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

Nothing is submitted with --dry-run; it needs neither SLURM nor the data.
"""

_FACT_FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("partition", {"metavar": "NAME", "help": "partition, or several with commas between"}),
    ("account", {"metavar": "NAME", "help": "account that is charged"}),
    ("qos", {"metavar": "NAME", "help": "quality of service"}),
    ("time", {"metavar": "TIME", "help": "limit of an attempt, such as 24:00:00 (the default)"}),
    ("cpus-per-rank", {"type": int, "metavar": "N", "help": "CPUs of each rank (8 beside a GPU)"}),
    ("memory-gb", {"type": float, "metavar": "GB", "help": "memory of each node"}),
    ("exclusive", {"action": "store_true", "default": None, "help": "whole nodes"}),
    ("constraint", {"metavar": "FEATURES", "help": "what the nodes must have"}),
    ("nodelist", {"metavar": "NODES", "help": "nodes to use"}),
    ("exclude", {"metavar": "NODES", "help": "nodes not to use"}),
    ("reservation", {"metavar": "NAME", "help": "reservation to run in"}),
    ("gres", {"metavar": "LIST", "help": "further generic resources"}),
    ("licenses", {"metavar": "LIST", "help": "licenses that the job holds"}),
    ("wckey", {"metavar": "KEY", "help": "workload characterization key"}),
    ("mail-user", {"metavar": "ADDRESS", "help": "who is told about the job"}),
    ("mail-type", {"metavar": "TYPES", "help": "what about, such as END,FAIL"}),
    ("comment", {"metavar": "TEXT", "help": "comment of the job"}),
    (
        "signal-seconds",
        {"type": int, "metavar": "N", "help": "ranks stop this long before the limit (120)"},
    ),
    (
        "max-requeues",
        {"type": int, "metavar": "N", "help": "restarts at the time limit (50)"},
    ),
)


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
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--dry-run",
        action="store_true",
        help="print configuration, world size, batch arithmetic and sbatch's script, and stop",
    )
    ways.add_argument(
        "--local",
        action="store_true",
        help="run the same job in processes of this machine, all nodes folded into it",
    )
    ways.add_argument("--debug", action="store_true", help="run it in this process, as one rank")
    parser.add_argument("--job-name", metavar="NAME", help="default: the run folder's name")
    parser.add_argument(
        "--allow-code-change",
        action="store_true",
        help="let later attempts run vggdist as it is then; by default they refuse other code than "
        "there was at the submission",
    )
    add_json(parser)


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Nodes, and facts about the cluster."""
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="default: 1")
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="N", help="GPUs of each node, a rank on each; 0: none"
    )
    parser.add_argument(
        "--ranks-per-node",
        type=positive,
        metavar="N",
        help="ranks on each node (default: one for each GPU, else 1)",
    )
    cluster = parser.add_argument_group("facts about the cluster")
    add_input(
        cluster,
        "--cluster",
        metavar="FILE",
        help="YAML file of these facts (default: ~/.config/vggdist/cluster.yaml); flags win",
    )
    for name, settings in _FACT_FLAGS:
        cluster.add_argument(f"--{name}", **settings)


def fact_flags(arguments: argparse.Namespace) -> dict[str, object]:
    """The facts that were given as flags, by the names of `ClusterFacts`."""
    names = [name.replace("-", "_") for name, _ in _FACT_FLAGS]
    return {name: getattr(arguments, name) for name in names}


def run(arguments: argparse.Namespace) -> int:
    """Submits, or shows what it would submit, or runs it here; returns the exit code."""
    from vggdist.slurm.job import TrainingWork
    from vggdist.slurm.settings import load_facts
    from vggdist.slurm.submit import Submission, make_layout, typed_command

    check_outputs(arguments)
    config = configured(arguments)
    facts = load_facts(arguments.cluster, fact_flags(arguments))
    layout = make_layout(arguments.nodes, arguments.gpus_per_node, arguments.ranks_per_node, facts)
    folder = Path(config.run_folder)
    submission = Submission(
        name=arguments.job_name or folder.name,
        works=(TrainingWork(config.model_dump(mode="json")),),
        layout=layout,
        facts=facts,
        folder=folder / "jobs",
        command=typed_command(),
        allow_code_change=arguments.allow_code_change,
    )
    if arguments.debug:
        return _run_here(submission)
    said = _describe(config, submission)
    if arguments.dry_run:
        return _dry_run(arguments, config, submission, said)
    if arguments.local:
        return _run_local(arguments, submission, said)
    return _submit(arguments, submission, said)


def _describe(config: Config, submission: Any) -> dict[str, Any]:
    """World size and batch arithmetic; refuses a batch that cannot be divided."""
    layout, split = submission.layout, split_batch(config.batch, submission.layout.world_size)
    return {
        "nodes": layout.nodes,
        "ranks_per_node": layout.ranks_per_node,
        "gpus_per_node": layout.gpus_per_node,
        "cpus_per_rank": submission.cpus_per_rank,
        "world_size": layout.world_size,
        "global_batch": split.global_batch,
        "accumulation_steps": split.accumulation_steps,
        "micro_batch": split.micro,
        "run_folder": str(Path(config.run_folder)),
        "job_folder": str(submission.folder),
    }


def _render(said: dict[str, Any]) -> str:
    on = "a GPU and " if said["gpus_per_node"] else ""
    return (
        f"world size {said['world_size']} = {_count(said['nodes'], 'node')} x "
        f"{_count(said['ranks_per_node'], 'rank')}, each with {on}"
        f"{_count(said['cpus_per_rank'], 'CPU')}\n"
        f"global batch {said['global_batch']} = {_count(said['world_size'], 'rank')} x "
        f"{_count(said['accumulation_steps'], 'micro batch', 'micro batches')} x "
        f"{_count(said['micro_batch'], 'image')}\n"
        f"run folder {quote(said['run_folder'])}, job folder {quote(said['job_folder'])}\n"
    )


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _dry_run(
    arguments: argparse.Namespace, config: Config, submission: Any, said: dict[str, Any]
) -> int:
    from vggdist.slurm.submit import sbatch_text

    script, configuration = sbatch_text(submission), to_yaml(config)
    text = (
        f"{_render(said)}\n# configuration\n{configuration}\n# sbatch\n{script}\n"
        "Nothing was submitted (--dry-run).\n"
    )
    shown = said | {"submitted": False, "configuration": configuration, "sbatch": script}
    show(text, shown, arguments.json)
    return 0


def _submit(arguments: argparse.Namespace, submission: Any, said: dict[str, Any]) -> int:
    from vggdist.errors import ConfigError
    from vggdist.slurm.queue import require_slurm
    from vggdist.slurm.submit import running_jobs, submit

    require_slurm()
    for job, state in running_jobs(submission.folder).items():
        raise ConfigError(
            f"job {job} ({state}) is training in {quote(said['run_folder'])} already; wait for it, "
            f"end it with `scancel {job}`, or choose another run.folder."
        )
    (job,) = submit(submission)
    log = submission.folder / f"{job}_0_log.err"
    text = (
        f"{_render(said)}job {job} is submitted; `squeue --job {job}` shows it, "
        f"`scancel {job}` ends it, and it is followed by\n  tail -F {quote(log)}\n"
    )
    show(text, said | {"submitted": True, "job": job, "log": str(log)}, arguments.json)
    return 0


def _run_local(arguments: argparse.Namespace, submission: Any, said: dict[str, Any]) -> int:
    from vggdist.slurm.submit import run_local

    sys.stdout.write(_render(said))
    if submission.layout.nodes > 1:
        sys.stdout.write(
            f"all {said['world_size']} ranks of {said['nodes']} nodes run on this machine\n"
        )
    sys.stdout.flush()
    limit = submission.facts.timeout_minutes if arguments.time is not None else None
    exit_code = run_local(submission, limit)
    if arguments.json is not None:
        write_json(said | {"submitted": False, "exit_code": exit_code}, arguments.json)
    return exit_code


def _run_here(submission: Any) -> int:
    """The work itself, without submitit or a job folder."""
    from vggdist.training.stop import StopSignal

    with StopSignal() as stop:
        exit_code: int = submission.works[0].run(stop)
    return exit_code
