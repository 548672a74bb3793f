"""The `vggdist` command: one thin function per verb. Training itself is `launch/train.py`."""

import argparse
import json
import os
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

IMAGENET_DESCRIPTION = """\
Writes ILSVRC2012 as a data set, from the archives that image-net.org gives to registered users.
Each archive is read once and nothing is unpacked elsewhere. A killed run goes on when the same
command is started again. Their MD5 sums, for md5sum:
  1d675b47d978889d74fa0da5fadfb00e  ILSVRC2012_img_train.tar
  29b22e2961454d5413ddabcf34fc5622  ILSVRC2012_img_val.tar
  fa75699e90414af021442c21a62c3abf  ILSVRC2012_devkit_t12.tar.gz
"""

STEP_DESCRIPTION = """\
Times, in turn: a training step beside a bare PyTorch loop with the same network; the loader alone;
the step on synthetic images; both together; and, with several ranks, the step without the exchange
of gradients. Then says what the training is bound by and which setting to change. Without
data.root the loader is left out. Nothing is written and no weights are kept.
"""

TUNE_DESCRIPTION = """\
Tries data.num_threads, data.prefetch, data.read_ahead and, with a GPU,
data.hardware_decoder_share, one after the other. A change is kept only if it is clearly faster than
the best so far, measured in turn with it; ties go to what is cheaper. Writes the best as
section.key=value lines, which @FILE reads on every command line of settings. Takes some minutes.
Start it under torchrun with a node's ranks if they share its cores. The loader is measured alone:
`vggdist bench step` says whether it holds the training up at all.
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
    _add_prepare_imagenet(prepare)
    _add_prepare_folder(prepare)

    check = verbs.add_parser(
        "check",
        help="decode every image before a training does; list those that it could not use",
        description="Decodes every image with Pillow and DALI, in processes that may crash, and "
        "reports counts, sizes, formats, duplicates and tiny classes. Nothing is moved: images "
        "that training could not use are listed in a quarantine file beside the data, which "
        "training reads.",
        epilog="example: vggdist check /data/imagenet --jobs 8 --json check.json --threshold 0.001",
    )
    check.add_argument("data", type=Path, metavar="DATA", help="train/ and val/, or any images")
    check.add_argument(
        "--jobs", type=_positive, metavar="N", help="processes (default: one for each CPU)"
    )
    check.add_argument(
        "--threshold",
        type=_fraction,
        default=1.0,
        metavar="FRACTION",
        help="exit with 3 if a larger share of the images cannot be used (default: 1, never)",
    )
    _add_json(check)
    check.set_defaults(run=_check)

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
        help="what bounds a training: images, arithmetic or exchange; and our step beside a bare "
        "PyTorch loop's",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=STEP_DESCRIPTION,
        epilog="examples: vggdist bench step --config configs/vgg_d.yaml data.root=/data/imagenet\n"
        "          torchrun --standalone --nproc-per-node 2 -m vggdist.cli bench step "
        "batch.global=32\n"
        "          vggdist bench step --rounds 5 model.configuration=A precision=fp32",
    )
    step.add_argument(
        "--rounds", type=int, default=15, help="timings of everything, in turn (default: 15)"
    )
    _add_config(step)
    _add_json(step)
    step.set_defaults(run=_bench_step)
    _add_tune(verbs)
    return parser


def _add_tune(verbs: Any) -> None:
    tune = verbs.add_parser("tune", help="find this machine's fastest settings").add_subparsers(
        required=True, metavar="WHAT"
    )
    data = tune.add_parser(
        "data",
        help="threads, queues and, on a GPU, the hardware decoder's share of the loader",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=TUNE_DESCRIPTION,
        epilog="example: vggdist tune data --data /data/imagenet --config configs/vgg_d.yaml "
        "--out tuned.txt\n"
        "         python launch/train.py --config configs/vgg_d.yaml data.root=/data/imagenet "
        "@tuned.txt",
    )
    data.add_argument(
        "--data",
        type=Path,
        metavar="ROOT",
        help="a data set, class folders or a folder of images (default: data.root)",
    )
    data.add_argument(
        "--out",
        type=Path,
        default=Path("tuned.txt"),
        metavar="FILE",
        help="file of settings to write (default: tuned.txt)",
    )
    data.add_argument(
        "--rounds", type=int, default=5, help="pairs of timings of each change (default: 5)"
    )
    _add_config(data)
    _add_json(data)
    data.set_defaults(run=_tune_data)


def _add_prepare_imagenet(verbs: Any) -> None:
    imagenet = verbs.add_parser(
        "imagenet",
        help="ImageNet's three archives as class folders or shards",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=IMAGENET_DESCRIPTION,
        epilog="example: vggdist prepare imagenet --train ILSVRC2012_img_train.tar "
        "--val ILSVRC2012_img_val.tar\n         --devkit ILSVRC2012_devkit_t12.tar.gz "
        "--out /data/imagenet --form shards",
    )
    for name, file in (
        ("train", "ILSVRC2012_img_train.tar"),
        ("val", "ILSVRC2012_img_val.tar"),
        ("devkit", "ILSVRC2012_devkit_t12.tar.gz"),
    ):
        imagenet.add_argument(f"--{name}", type=Path, required=True, metavar="FILE", help=file)
    _add_packing(imagenet, "folders")
    imagenet.add_argument(
        "--strict",
        action="store_true",
        help="exit with 3 where counts differ from ILSVRC2012's, instead of warning",
    )
    imagenet.set_defaults(run=_prepare_imagenet)


def _add_prepare_folder(verbs: Any) -> None:
    folder = verbs.add_parser(
        "folder",
        help="class folders as shards, or with smaller images",
        description="Packs a data set of class folders, SRC/train/CLASS/IMAGE and "
        "SRC/val/CLASS/IMAGE, which can also be trained on as it is. Labels, the order of the "
        "images and so a training stay the same. A killed run goes on when it is started again.",
        epilog="example: vggdist prepare folder datasets/flowers --out /data/flowers "
        "--form shards --shorter-side 512",
    )
    folder.add_argument("source", type=Path, metavar="SRC", help="folder with train/ and val/")
    _add_packing(folder, "shards")
    folder.set_defaults(run=_prepare_folder)


def _add_packing(parser: argparse.ArgumentParser, form: str) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--form",
        choices=("folders", "shards"),
        default=form,
        help="a file for each image, or tar files in WebDataset's naming, each with an index for "
        f"DALI (default: {form})",
    )
    parser.add_argument(
        "--shorter-side",
        type=int,
        metavar="S",
        help="make images smaller whose shorter side is longer than S pixels (Lanczos); the "
        "others keep their bytes (default: all do)",
    )
    parser.add_argument(
        "--quality", type=int, default=95, help="JPEG quality of those (default: 95; 4:4:4)"
    )
    parser.add_argument(
        "--shard-megabytes",
        type=float,
        default=512,
        metavar="N",
        help="length of a shard (default: 512)",
    )
    parser.add_argument(
        "--jobs",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="threads (default: one for each CPU)",
    )
    _add_json(parser)


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


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _fraction(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{share} is not between 0 and 1")
    return share


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
    from vggdist.data.preparation.digits import write_digits

    write_digits(arguments.out)


def _check(arguments: argparse.Namespace) -> None:
    from vggdist.data.verification.check import check
    from vggdist.data.verification.report import render_check

    result = check(arguments.data, arguments.jobs)
    _show(render_check(result, arguments.json), result.to_dict(), arguments.json)
    result.require(arguments.threshold)


def _prepare_imagenet(arguments: argparse.Namespace) -> None:
    from vggdist.data.preparation.archives import ImageNetArchives

    source = ImageNetArchives(arguments.train, arguments.val, arguments.devkit)
    _prepare(source, arguments, arguments.strict)


def _prepare_folder(arguments: argparse.Namespace) -> None:
    from vggdist.data.preparation.sources import FolderSource

    _prepare(FolderSource(arguments.source), arguments)


def _prepare(source: Any, arguments: argparse.Namespace, strict: bool = False) -> None:
    from vggdist.data.preparation.packing import Resize
    from vggdist.data.preparation.prepare import prepare, render_prepared
    from vggdist.data.preparation.writers import Packing

    side = arguments.shorter_side
    packing = Packing(
        arguments.form,
        None if side is None else Resize(side, arguments.quality),
        arguments.shard_megabytes,
        arguments.jobs,
    )
    prepared = prepare(source, arguments.out, packing, strict)
    _show(render_prepared(prepared), prepared.to_dict(), arguments.json)


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
    if result is not None:  # the main rank speaks
        _show(render_step(result), result, arguments.json)


def _tune_data(arguments: argparse.Namespace) -> None:
    from vggdist.benchmark.tune import render_tuned, require_writable, tune_data, write_tuned

    require_writable(arguments.out)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.data is not None:
        data = config.data.model_copy(update={"root": str(arguments.data)})
        config = config.model_copy(update={"data": data})
    result = tune_data(config, arguments.rounds)
    if result is None:  # the main rank writes and speaks
        return
    write_tuned(result, arguments.out)
    config_file = f" --config {arguments.config}" if arguments.config else ""
    use = f"Written to {arguments.out}; to use it: launch/train.py{config_file} @{arguments.out}"
    _show(f"{render_tuned(result)}\n{use}", result, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
