"""The `vggdist` command: one thin function per verb. Training itself is `launch/train.py`."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggdist.config_file import load_config
from vggdist.errors import VggdistError

DESCRIPTION = """\
Look at networks, prepare images and measure speed. Training is started by launch/train.py, under
deepspeed, torchrun or plain python.
"""


def main() -> int:
    """Runs the verb of the command line; problems that a user can solve end without a traceback."""
    arguments = build_parser().parse_args()
    try:
        arguments.run(arguments)
    except VggdistError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line of all verbs."""
    parser = argparse.ArgumentParser(prog="vggdist", description=DESCRIPTION)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    summary = verbs.add_parser(
        "summary",
        help="layers, shapes, parameters and multiply-adds of a network",
        epilog="example: vggdist summary --configuration E data.crop_size=320",
    )
    summary.add_argument("--configuration", metavar="NAME", help="A, A-LRN, B, C, D or E")
    _add_config(summary)
    _add_json(summary)
    summary.set_defaults(run=_summary)

    prepare = verbs.add_parser("prepare", help="write a data set").add_subparsers(
        required=True, metavar="DATA"
    )
    digits = prepare.add_parser(
        "digits",
        help="the built-in one: scikit-learn's handwritten digits as folders of JPEGs",
        epilog="example: vggdist prepare digits --out datasets/digits",
    )
    digits.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    digits.set_defaults(run=_prepare_digits)

    bench = verbs.add_parser("bench", help="measure speed on this machine").add_subparsers(
        required=True, metavar="WHAT"
    )
    data = bench.add_parser(
        "data",
        help="the input pipeline beside torchvision's and DALI's usual ones",
        epilog="example: vggdist bench data --data /data/imagenet --json input.json",
    )
    data.add_argument(
        "--data", type=Path, required=True, metavar="ROOT", help="class folders, or train/ and val/"
    )
    _add_json(data)
    data.set_defaults(run=_bench_data)

    step = bench.add_parser(
        "step",
        help="a training step beside a bare PyTorch loop with the same network",
        epilog="example: vggdist bench step --rounds 5 model.configuration=A precision=fp32",
    )
    step.add_argument("--rounds", type=int, default=15, help="pairs of timings (default: 15)")
    _add_config(step)
    _add_json(step)
    step.set_defaults(run=_bench_step)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of sections")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="on top of the file and of the paper's defaults",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the result as JSON")


def _show(text: str, values: Mapping[str, Any], path: Path | None) -> None:
    sys.stdout.write(text.rstrip("\n") + "\n")
    if path is not None:
        try:
            path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise VggdistError(f"--json {path} cannot be written: {error}.") from error


def _summary(arguments: argparse.Namespace) -> None:
    from vggdist.model.summary import render_summary, summarize

    overrides = list(arguments.overrides)
    if arguments.configuration is not None:
        overrides.append(f"model.configuration={arguments.configuration}")
    config = load_config(arguments.config, overrides)
    summary = summarize(config.model, config.data.crop_size)
    _show(render_summary(summary), summary.to_dict(), arguments.json)


def _prepare_digits(arguments: argparse.Namespace) -> None:
    from vggdist.data.digits import write_digits

    write_digits(arguments.out)


def _bench_data(arguments: argparse.Namespace) -> None:
    from vggdist.benchmark.data import measure_data, render_data

    result = measure_data(arguments.data)
    _show(render_data(result), result, arguments.json)


def _bench_step(arguments: argparse.Namespace) -> None:
    from vggdist.benchmark.step import measure_step, render_step

    # 16 images fit every machine; the paper's 256 would take minutes a step on a CPU.
    default = ["batch.global=16"] if arguments.config is None else []
    overrides = [*default, *arguments.overrides]
    result = measure_step(load_config(arguments.config, overrides), arguments.rounds)
    _show(render_step(result), result, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
