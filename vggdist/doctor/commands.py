"""The verb doctor: is everything here that a training needs, and if not, what to do."""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from vggdist.commands.arguments import add_input, add_json, positive, user_path_text, write_json
from vggdist.errors import VggdistError

DESCRIPTION = """\
Tries what a training needs, in a minute at most: Python and the packages, processor and memory,
GPUs and their driver, the precision, DALI's decoders, ranks that add numbers, SLURM, the disk, and
with --data the images. Behind each problem stands what to do. Nothing stays on the disk.
"""
MARKS = {"good": "ok  ", "warning": "note", "problem": "BAD "}


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    doctor = verbs.add_parser(
        "doctor",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=DESCRIPTION,
        epilog="example: vggdist doctor --data /data/imagenet --ranks 8",
    )
    add_input(
        doctor,
        "--data",
        images=True,
        type=user_path_text,
        metavar="ROOT",
        help="a data set: count its images, and read some",
    )
    doctor.add_argument(
        "--ranks",
        type=positive,
        default=2,
        metavar="N",
        help="processes that add numbers; on GPUs at most one for each (default: 2)",
    )
    add_input(
        doctor,
        "--folder",
        default=Path("runs"),
        metavar="DIR",
        help="where run folders will be (default: runs)",
    )
    add_json(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from vggdist.doctor.finding import Check, run_checks

    checks: dict[str, Check] = {}
    for subject, module, name, values in (
        ("Python", "software", "python", ()),
        ("packages", "software", "packages", ()),
        ("processor", "hardware", "processor", ()),
        ("GPUs", "hardware", "gpus", ()),
        ("precision", "hardware", "precision", ()),
        ("decoder", "hardware", "decoder", ()),
        ("ranks", "ranks", "ranks", (arguments.ranks,)),
        ("SLURM", "software", "slurm", ()),
        ("disk", "hardware", "disk", (arguments.folder,)),
        *((("data", "hardware", "data", (arguments.data,)),) if arguments.data else ()),
    ):
        checks[subject] = partial(_call, module, name, *values)
    found = []
    for subject, finding in run_checks(checks):
        found.append({"subject": subject, "kind": finding.kind, **vars(finding)})
        sys.stdout.write(f"{MARKS[finding.kind]}  {subject:<10}{finding.text}\n")
        if finding.hint:
            sys.stdout.write(f"{'':16}{finding.hint}\n")
        sys.stdout.flush()
    if arguments.json is not None:
        write_json({"findings": found}, arguments.json)
    num_problems = sum(finding["is_problem"] for finding in found)
    if num_problems:
        sys.stdout.write(f"\n{num_problems} of these keep trainings from working.\n")
        return VggdistError.exit_code
    sys.stdout.write("\nTrainings can run here.\n")
    return 0


def _call(module: str, name: str, *values: Any) -> Any:
    """Imports a check when its turn comes: a library that is broken costs its own line only."""
    from importlib import import_module

    return getattr(import_module(f"vggdist.doctor.{module}"), name)(*values)
