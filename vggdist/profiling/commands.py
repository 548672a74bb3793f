"""Verbs that measure: bench and tune."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vggdist.artifacts.paths import quote
from vggdist.commands.arguments import (
    add_config,
    add_input,
    add_json,
    add_output,
    add_overrides,
    configured,
    positive,
    settings_of,
    show,
)
from vggdist.commands.ranks import start_ranks

STEP_DESCRIPTION = """\
Times, in turn: a training step, that of a bare PyTorch loop with the same network, and that of a
tuned one (torch.compile of the convolutions; on a GPU also cudnn.benchmark and a CUDA graph); the
loader alone; the step on synthetic images; both together; and, with several ranks, the step without
the exchange of gradients. Then says what the training is bound by and which setting to change, and
how much of the device's peak it uses: of the published one, or where there is none, of that of a
large matrix product. Without data.root the loader is left out. Nothing is written and no weights
are kept.
"""

EVALUATION_DESCRIPTION = """\
Times, in turn: whole images of real shapes through our dense evaluation; one image and its mirror
image at a time, fc6 to fc8 as convolutions; images of one shape; and multi-crop evaluation with and
without shared layers. The images are in memory and the weights random.
"""

EXCHANGE_DESCRIPTION = """\
Makes two hosts on this machine, joined by a cable of limited speed (network namespaces; needs
root), and trains the same network on the same images, one rank on each, with each way to exchange
gradients in turn: ours; torch DDP in fp32 and with its bf16 hook; DeepSpeed stage 0 in bf16; ZeRO-1
and ZeRO-2 as they come, and with weights, gradients and communication in bf16 and overlap. Other
weights are fp32, and the arithmetic is bf16 or fp32, in whichever a convolution is faster here;
precision= changes it for all. Shows the bytes that a rank sends, the time of a step, how much of it
is the exposed exchange (a step less the same step without exchange, in turn), the loss, and memory.
All of it takes some fifteen minutes at 1gbit and 4 GB a rank.
"""

MACHINE_DESCRIPTION = """\
Measures what `vggdist plan --device FILE` has to know of this machine: arithmetic of the network in
training, the spread of its steps, memory, links between the ranks of this node, images made ready
by a core, and the writing of a checkpoint. All ranks are measured at once, as they share a node.
The arithmetic is that of the configuration: plan with the same precision and crop size.
"""

TUNE_DESCRIPTION = """\
Tries data.num_threads, data.prefetch, data.read_ahead and, with a GPU,
data.hardware_decoder_share, one after the other. A change is kept only if it is clearly faster than
the best so far, measured in turn with it; ties go to what is cheaper. Writes the best as
section.key=value lines, which @FILE reads on every command line of settings. Takes some minutes.
Start it under torchrun with a node's ranks if they share its cores. The loader is measured alone:
`vggdist bench step` says whether it holds the training up at all.
"""


def add_verbs(verbs: Any) -> None:
    """Adds these verbs to the command line."""
    bench = verbs.add_parser("bench").add_subparsers(required=True, metavar="WHAT")
    data = _add(
        bench,
        "data",
        _bench_data,
        help="the input pipeline compared with torchvision's and DALI's usual ones",
        epilog="example: vggdist bench data --data /data/imagenet --json input.json",
    )
    _add_images(data, "class folders, or train/ and val/", required=True)
    add_json(data)

    step = _add(
        bench,
        "step",
        _bench_step,
        help="what bounds a training: images, arithmetic or exchange; and our step compared with a "
        "bare PyTorch loop's",
        description=STEP_DESCRIPTION,
        epilog="examples: vggdist bench step --config configs/vgg_d.yaml data.root=/data/imagenet\n"
        "          torchrun --standalone --nproc-per-node 2 -m vggdist bench step "
        "batch.global=32\n"
        "          vggdist bench step --rounds 5 model.configuration=A precision=fp32",
    )
    _add_count(step, "--rounds", 15, "timings of everything, in turn", type=int)
    add_config(step)
    add_json(step)

    evaluation = _add(
        bench,
        "evaluation",
        _bench_evaluation,
        help="dense and multi-crop evaluation compared with the usual ways",
        description=EVALUATION_DESCRIPTION,
        epilog="example: vggdist bench evaluation --data /data/imagenet --scale 256 precision=fp32",
    )
    _add_images(evaluation, "images (default: random ones in usual shapes)")
    _add_count(evaluation, "--scale", 256, "shorter side", metavar="Q")
    _add_count(evaluation, "--rounds", 5, "timings of everything, in turn")
    add_config(evaluation)
    add_json(evaluation)

    exchange = _add(
        bench,
        "exchange",
        _bench_exchange,
        help="our exchange of gradients compared with DDP's and DeepSpeed's, over a slow cable",
        description=EXCHANGE_DESCRIPTION,
        epilog="examples: sudo vggdist bench exchange --rate 1gbit --json exchange.json\n"
        "          sudo vggdist bench exchange --rate none --only ours,deepspeed_0 --rounds 3",
    )
    exchange.add_argument(
        "--rate",
        default="1gbit",
        metavar="RATE",
        help="of the cable, such as 200mbit or 10gbit; none: no limit (default: 1gbit)",
    )
    _add_count(exchange, "--steps", 5, "timed, after two that are not")
    rounds = "how often each is started anew, in turn; ratios are then shown with their range"
    _add_count(exchange, "--rounds", 1, rounds)
    exchange.add_argument(
        "--only",
        type=lambda text: text.split(","),
        metavar="NAMES",
        help="ours, ddp_fp32, ddp_bf16, deepspeed_0, zero_1, zero_2, zero_1_bf16 or zero_2_bf16; "
        "several with commas (default: all)",
    )
    add_overrides(
        exchange, "on top of D, 64 px, 32 images of both ranks; such as exchange=all_reduce"
    )
    add_json(exchange)

    machine = _add(
        bench,
        "machine",
        _bench_machine,
        help="this machine's figures, for `vggdist plan --device FILE`",
        description=MACHINE_DESCRIPTION,
        epilog="examples: vggdist bench machine --out machine.json --ranks 8\n"
        "          vggdist plan --nodes 4 --gpus-per-node 8 --micro-batch 64 --device machine.json "
        "--network 100gbit",
    )
    out = "JSON file to write (default: machine.json); a checkpoint is tried in its folder"
    _add_out(machine, "machine.json", (".json",), out)
    ranks = "ranks on this machine, as in training: its GPUs"
    _add_count(machine, "--ranks", 1, ranks, metavar="N")
    _add_count(machine, "--rounds", 10, "training steps to time")
    add_config(machine)

    tune = verbs.add_parser("tune").add_subparsers(required=True, metavar="WHAT")
    loader = _add(
        tune,
        "data",
        _tune_data,
        help="threads, queues and, on a GPU, the hardware decoder's share of the loader",
        description=TUNE_DESCRIPTION,
        epilog="example: vggdist tune data --data /data/imagenet --config configs/vgg_d.yaml "
        "--out tuned.txt\n"
        "         python launch/train.py --config configs/vgg_d.yaml data.root=/data/imagenet "
        "@tuned.txt",
    )
    images = "a data set, class folders or a folder of images (default: data.root)"
    _add_images(loader, images)
    _add_out(loader, "tuned.txt", (".txt", ""), "file of settings to write (default: tuned.txt)")
    _add_count(loader, "--rounds", 5, "pairs of timings of each change", type=int)
    add_config(loader)
    add_json(loader)


def _add(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], object], **texts: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
    )
    parser.set_defaults(run=run)
    return parser


def _add_images(parser: argparse.ArgumentParser, text: str, **settings: Any) -> None:
    add_input(parser, "--data", images=True, metavar="ROOT", help=text, **settings)


def _add_out(
    parser: argparse.ArgumentParser, name: str, suffixes: tuple[str, ...], text: str
) -> None:
    out = {"default": Path(name), "metavar": "FILE", "help": text}
    add_output(parser, "--out", suffixes=suffixes, **out)


def _add_count(
    parser: argparse.ArgumentParser, name: str, default: int, text: str, **settings: Any
) -> None:
    settings = {"type": positive, "default": default, **settings}
    parser.add_argument(name, help=f"{text} (default: {default})", **settings)


def _bench_data(arguments: argparse.Namespace) -> None:
    from vggdist.profiling.data import measure_data, render_data
    from vggdist.profiling.data_baselines import Sizes

    result = measure_data(arguments.data, Sizes())
    show(render_data(result), result, arguments.json)


def _bench_step(arguments: argparse.Namespace) -> None:
    from vggdist.profiling.step import measure_step, render_step

    # 16 images fit every machine; the paper's 256 would take minutes a step on a CPU.
    default = ["batch.global=16"] if arguments.config is None else []
    result = measure_step(configured(arguments, default), arguments.rounds)
    if result is not None:  # the main rank speaks
        show(render_step(result), result, arguments.json)


def _bench_evaluation(arguments: argparse.Namespace) -> None:
    from vggdist.data.geometry import require_scales
    from vggdist.profiling.evaluation import measure_evaluation, render_evaluation

    config = configured(arguments)
    (scale,) = require_scales([arguments.scale], config.data.crop_size)
    result = measure_evaluation(config, arguments.data, scale, arguments.rounds)
    show(render_evaluation(result), result, arguments.json)


def _bench_exchange(arguments: argparse.Namespace) -> None:
    from vggdist.profiling.exchange import NAMES, measure_exchange, render_exchange

    result = measure_exchange(
        arguments.rate,
        arguments.steps,
        arguments.only or list(NAMES),
        settings_of(arguments),
        arguments.rounds,
    )
    show(render_exchange(result), result, arguments.json)


def _bench_machine(arguments: argparse.Namespace) -> int | None:
    from vggdist.profiling.machine import measure_machine, render_machine, require_writable

    if arguments.ranks > 1:
        return start_ranks(arguments.ranks)
    require_writable(arguments.out)
    # A launcher has started the ranks, and they have not met yet.
    world_size = int(os.environ.get("WORLD_SIZE") or 1)
    config = configured(arguments, [] if arguments.config else [f"batch.global={16 * world_size}"])
    values = measure_machine(config, arguments.rounds, arguments.out.absolute().parent)
    if values is not None:  # the main rank writes and speaks
        show(render_machine(values), values, arguments.out)
    return None


def _tune_data(arguments: argparse.Namespace) -> None:
    from vggdist.profiling.tune import render_tuned, require_writable, tune_data, write_tuned

    require_writable(arguments.out)
    config = configured(arguments)
    if arguments.data is not None:
        data = config.data.model_copy(update={"root": str(arguments.data)})
        config = config.model_copy(update={"data": data})
    result = tune_data(config, arguments.rounds)
    if result is None:  # the main rank writes and speaks
        return
    write_tuned(result, arguments.out)
    words = ["--config", str(arguments.config)] if arguments.config else []
    words += settings_of(arguments)
    words += [f"data.root={arguments.data}"] if arguments.data else []
    training = " ".join(map(quote, ["vggdist", "train", *words, f"@{arguments.out}"]))
    use = f"Written to {quote(arguments.out)}; to use it:\n  {training}"
    show(f"{render_tuned(result)}\n{use}", result, arguments.json)
