"""The verb predict."""

import argparse
from typing import Any, get_args

from vggdist.commands.arguments import (
    add_input,
    add_json,
    add_network,
    add_output,
    positive,
    show,
)
from vggdist.config import Orientation, PrecisionSetting

DESCRIPTION = """\
Prints the most probable classes of images, from their centre crop. Class names come from the
weights file; for ImageNet's 1000 classes they are in English. Images that cannot be used are
listed, the others are predicted, and the exit code is 3.
"""


def add_verbs(verbs: Any) -> None:
    """Adds this verb to the command line."""
    predict = verbs.add_parser(
        "predict",
        description=DESCRIPTION,
        epilog="example: vggdist predict vgg_d.safetensors cat.jpg photos/ --top 3 "
        "--out predictions.png",
    )
    add_network(predict)
    add_input(
        predict,
        "images",
        images=True,
        nargs="+",
        metavar="IMAGE",
        help="images, or folders of images",
    )
    predict.add_argument(
        "--top", type=positive, default=5, metavar="K", help="classes for each (default: 5)"
    )
    add_output(
        predict,
        "--out",
        suffixes=(".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".pdf"),
        metavar="FILE",
        help="picture to draw, such as sheet.png",
    )
    predict.add_argument(
        "--scale",
        type=positive,
        metavar="Q",
        help="rescaled shorter side, pixels (default: the middle of the training scales; if "
        "they are unknown, 256 for a crop size of 224)",
    )
    predict.add_argument(
        "--precision",
        choices=get_args(PrecisionSetting),
        default="auto",
        help="of the arithmetic (default: auto, the one in which the network was trained "
        "if this device has it, else the best that it computes natively)",
    )
    predict.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="(default: auto)"
    )
    predict.add_argument(
        "--orientation",
        choices=get_args(Orientation),
        help="what is done about the EXIF orientation of photos: apply turns them as a viewer does "
        "(default: as in training, and apply where the weights file does not say)",
    )
    add_json(predict)
    predict.set_defaults(run=_predict)


def _predict(arguments: argparse.Namespace) -> int:
    from vggdist import predict
    from vggdist.artifacts.run_folder import open_weights, precision_of
    from vggdist.distributed.rank import log_to_terminal
    from vggdist.errors import DataError

    log_to_terminal()
    weights = open_weights(arguments.network)
    files, problems = predict.split_usable(predict.expand(arguments.images))
    predict.report_problems(problems)
    orientation = arguments.orientation or weights.description.photo_orientation
    predictions = []
    if files:
        predictions = predict.predict(
            weights,
            files,
            top=arguments.top,
            scale=arguments.scale,
            precision=arguments.precision,
            device=arguments.device,
            trained=precision_of(arguments.network),
            orientation=orientation,
        )
    result = predict.to_dict(predictions, problems)
    show(predict.render_predictions(predictions), result, arguments.json)
    if predictions and arguments.out is not None:
        predict.draw_sheet(predictions, arguments.out, orientation == "apply")
    return DataError.exit_code if problems else 0
