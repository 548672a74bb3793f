"""Verbs about files of other programs: import and export."""

import argparse
from typing import Any

from vggdist.commands.arguments import (
    add_config,
    add_configuration,
    add_input,
    add_json,
    add_network,
    add_output,
    configured,
    positive,
    show,
)

IMPORT_DESCRIPTION = """\
Reads trained weights in the layout of others and writes a weights file, which says of itself which
network it is for and what it is fed; every verb takes it, and a training begins from it with
model.initialize_from. Nothing in FILE is run: a pickle that holds more than tensors is refused.

  torchvision  state dict, features.0.weight ... classifier.6.bias
  timm         state dict with convolutions for fc6 and fc7
  caffe        arrays conv1_1_W ... fc8_b, OIHW kernels, (out, in) matrices
  keras        arrays block1_conv1/kernel:0 ..., HWIO kernels, (in, out) matrices
  vggdist      a weights file, or a checkpoint's weights without a description

The network may lie in dictionaries, and its names may have prefixes; where there are several, --key
names one. Tensors beside it are left out and listed. Number of classes, width of fc6 and fc7, batch
normalization and crop size are those of the file. Settings say what a file cannot:
model.configuration for one's own blocks, data.mean and data.std, data.train_scale_min and
data.train_scale_max.
"""

EXPORT_DESCRIPTION = """\
Writes a trained network for other programs. Before the file is kept it is loaded again, and its
logits on random images are compared with the network's own.

  safetensors   the weights file itself, as import writes it
  torchvision   a state dict for torchvision's vgg11, vgg13, vgg16 or vgg19, also with batch
                normalization (configurations A, B, D and E at crop size 224)
  onnx          a graph for onnxruntime and others, with any number of images
  torch-export  a .pt2 file of torch.export, with any number of images

With --dense the graph takes whole images of any height and width from the crop size on, applies
the fully connected layers as convolutions (section 3.2 of the paper) and averages the score map.
"""


def add_verbs(verbs: Any) -> None:
    """Adds these verbs to the command line."""
    _add_import(verbs)
    _add_export(verbs)


def _add_import(verbs: Any) -> None:
    parser = verbs.add_parser(
        "import",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=IMPORT_DESCRIPTION,
        epilog="examples: vggdist import vgg16-397923af.pth --configuration D --out "
        "vgg_d.safetensors\n"
        "          vggdist import VGG_ILSVRC_19_layers.npz --configuration E --out "
        "vgg_e.safetensors\n"
        "          vggdist import vgg16_notop.npz --configuration D --partial --out "
        "vgg_d_conv.safetensors",
    )
    add_input(
        parser,
        "file",
        metavar="FILE",
        help="a file of torch.save (.pth, .pt, .bin, .ckpt, .pth.tar), .safetensors or .npz",
    )
    add_configuration(parser)
    parser.add_argument(
        "--layout",
        choices=("auto", "torchvision", "timm", "caffe", "keras", "vggdist"),
        default="auto",
        help="names and orders of the tensors (default: auto, from names and shapes)",
    )
    parser.add_argument(
        "--input",
        choices=("torchvision", "mean-rgb", "mean-bgr"),
        dest="scaling",
        help="what the network was fed: torchvision, RGB less ImageNet's mean and divided by its "
        "standard deviation; mean-rgb, grey levels less the mean; mean-bgr, the same with blue "
        "first, and the first layer is turned to RGB (default: torchvision for torchvision and "
        "timm, mean-bgr for caffe and keras)",
    )
    parser.add_argument(
        "--key",
        metavar="NAME",
        help="where in FILE the network is, such as state_dict or ema (default: the only one)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out tensors of such names, for example 'aux.*'; may be given several times",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="let layers be missing; the result is for model.initialize_from",
    )
    parser.add_argument(
        "--crop-size",
        type=positive,
        metavar="PIXELS",
        help="side of the network's input (default: from fc6's inputs, else 224)",
    )
    add_input(
        parser,
        "--classes",
        metavar="FILE",
        help="names of the classes, one in each line; an evaluation compares them with the data's "
        "class folders (default: not known, which for 1000 classes means ImageNet's)",
    )
    add_output(
        parser,
        "--out",
        suffixes=(".safetensors",),
        required=True,
        metavar="FILE",
        help="weights file to write",
    )
    add_config(parser)
    add_json(parser)
    parser.set_defaults(run=_import)


def _add_export(verbs: Any) -> None:
    parser = verbs.add_parser(
        "export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=EXPORT_DESCRIPTION,
        epilog="examples: vggdist export runs/vgg_d --format torchvision --out vgg16.pth\n"
        "          vggdist export runs/vgg_d --format onnx --dense --out vgg_d.onnx",
    )
    add_network(parser)
    parser.add_argument(
        "--format",
        choices=("safetensors", "torchvision", "onnx", "torch-export"),
        required=True,
        help="what to write",
    )
    parser.add_argument(
        "--dense",
        action="store_true",
        help="for whole images of any height and width (onnx and torch-export)",
    )
    add_output(parser, "--out", required=True, metavar="FILE", help="file to write")
    add_json(parser)
    parser.set_defaults(run=_export)


def _import(arguments: argparse.Namespace) -> None:
    from vggdist.convert.importing import import_weights, read_classes, render_imported

    imported = import_weights(
        arguments.file,
        arguments.out,
        configured(arguments),
        layout=None if arguments.layout == "auto" else arguments.layout,
        scaling=arguments.scaling,
        key=arguments.key,
        ignore=arguments.ignore,
        partial=arguments.partial,
        crop_size=arguments.crop_size,
        classes=() if arguments.classes is None else read_classes(arguments.classes),
    )
    show(render_imported(imported), imported.to_dict(), arguments.json)


def _export(arguments: argparse.Namespace) -> None:
    from vggdist.artifacts.run_folder import open_weights
    from vggdist.convert.exporting import export, render_exported

    exported = export(
        open_weights(arguments.network), arguments.out, arguments.format, dense=arguments.dense
    )
    show(render_exported(exported), exported.to_dict(), arguments.json)
