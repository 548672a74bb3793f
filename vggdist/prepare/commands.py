"""Verbs about images: prepare and check."""

import argparse
import os
import sys
from typing import Any

from vggdist.commands.arguments import (
    add_input,
    add_json,
    add_output,
    fraction,
    positive,
    share,
    show,
)
from vggdist.prepare.ilsvrc2012 import ARCHIVES

IMAGENET_DESCRIPTION = """\
Writes ILSVRC2012 as a data set, from the archives that image-net.org gives to registered users.
Each archive is read once and nothing is unpacked elsewhere. A killed run goes on when the same
command is started again. Their MD5 sums, for md5sum:
""" + "".join(f"  {archive.md5}  {archive.name}\n" for archive in ARCHIVES.values())

FOLDER_DESCRIPTION = """\
Packs a data set of class folders, SRC/train/CLASS/IMAGE and SRC/val/CLASS/IMAGE, which can also be
trained on as it is. Labels, the order of the images and so a training stay the same. With
--validation SRC has class folders, SRC/CLASS/IMAGE, and a share of each class becomes val/. A
killed run goes on when it is started again.
"""


def add_verbs(verbs: Any) -> None:
    """Adds these verbs to the command line."""
    prepare = verbs.add_parser("prepare").add_subparsers(required=True, metavar="DATA")
    digits = prepare.add_parser(
        "digits",
        help="the built-in one: scikit-learn's handwritten digits as folders of JPEGs",
        epilog="example: vggdist prepare digits --out datasets/digits",
    )
    add_output(digits, "--out", required=True, metavar="DIR", help="folder to make")
    digits.set_defaults(run=_prepare_digits)
    _add_prepare_imagenet(prepare)
    _add_prepare_folder(prepare)

    check = verbs.add_parser(
        "check",
        description="Decodes every image with Pillow and DALI, in processes that may crash, and "
        "reports counts, sizes, formats, duplicates and tiny classes. Images that training could "
        "not use are listed in a quarantine file beside the data, which training reads; they stay "
        "where they are unless --move-broken says where to move them.",
        epilog="example: vggdist check /data/imagenet --jobs 8 --json check.json --threshold 0.001",
    )
    add_input(check, "data", images=True, metavar="DATA", help="train/ and val/, or any images")
    check.add_argument(
        "--jobs", type=positive, metavar="N", help="processes (default: one for each CPU)"
    )
    check.add_argument(
        "--threshold",
        type=fraction,
        default=1.0,
        metavar="FRACTION",
        help="exit with 3 if a larger share of the images cannot be used (default: 1, never)",
    )
    check.add_argument(
        "--accept-changes",
        action="store_true",
        help="accept images that came or went since the manifest was written, and list them",
    )
    add_output(
        check,
        "--move-broken",
        metavar="DIR",
        help="move images that cannot be used to this folder, with their class folders; nothing "
        "there is overwritten",
    )
    add_json(check)
    check.set_defaults(run=_check)


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
    for name, archive in ARCHIVES.items():
        add_input(imagenet, f"--{name}", required=True, metavar="FILE", help=archive.name)
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
        help="class folders as shards, with smaller images, or divided into train and val",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=FOLDER_DESCRIPTION,
        epilog="examples: vggdist prepare folder datasets/flowers --out /data/flowers "
        "--form shards --shorter-side 512\n"
        "          vggdist prepare folder all-photos --validation 20% --form folders\n"
        "            --out /data/photos",
    )
    add_input(
        folder,
        "source",
        images=True,
        metavar="SRC",
        help="folder with train/ and val/; with --validation, with class folders",
    )
    folder.add_argument(
        "--validation",
        type=share,
        metavar="SHARE",
        help="divide one folder of classes: this share of each class, such as 20%% or 0.2, becomes "
        "validation images; copies of an image stay on one side",
    )
    folder.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of that choice (default: 0)"
    )
    _add_packing(folder, "shards")
    folder.set_defaults(run=_prepare_folder)


def _add_packing(parser: argparse.ArgumentParser, form: str) -> None:
    add_output(parser, "--out", required=True, metavar="DIR", help="folder to make")
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
        type=positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="threads (default: one for each CPU)",
    )
    add_json(parser)


def _prepare_digits(arguments: argparse.Namespace) -> None:
    from vggdist.prepare.digits import write_digits

    write_digits(arguments.out)


def _prepare_imagenet(arguments: argparse.Namespace) -> None:
    from vggdist.prepare.archives import ImageNetArchives

    source = ImageNetArchives(arguments.train, arguments.val, arguments.devkit)
    _prepare(source, arguments, arguments.strict)


def _prepare_folder(arguments: argparse.Namespace) -> None:
    from vggdist.prepare.sources import FolderSource

    if arguments.validation is None:
        _prepare(FolderSource(arguments.source), arguments)
        return
    from vggdist.prepare.division import DividedFolder

    source = DividedFolder(arguments.source, arguments.validation, arguments.seed)
    sys.stdout.write(source.report)
    _prepare(source, arguments)


def _prepare(source: Any, arguments: argparse.Namespace, strict: bool = False) -> None:
    from vggdist.prepare.packing import Packing, Resize
    from vggdist.prepare.preparation import prepare, render_prepared

    side = arguments.shorter_side
    packing = Packing(
        arguments.form,
        None if side is None else Resize(side, arguments.quality),
        arguments.shard_megabytes,
        arguments.jobs,
    )
    prepared = prepare(source, arguments.out, packing, strict)
    show(render_prepared(prepared), prepared.to_dict(), arguments.json)


def _check(arguments: argparse.Namespace) -> None:
    from vggdist.prepare.check import check
    from vggdist.prepare.findings import render_check

    result = check(
        arguments.data,
        arguments.jobs,
        accept_changes=arguments.accept_changes,
        move_broken=arguments.move_broken,
    )
    show(render_check(result, arguments.json), result.to_dict(), arguments.json)
    result.require(arguments.threshold)
