"""Why an image file cannot be used, in one sentence for the user."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from vggdist.errors import DataError


def unreadable_error(encoded_path: bytes) -> DataError:
    """The error for a file that DALI could not read or decode."""
    path = Path(os.fsdecode(encoded_path))
    return DataError(
        f"The image {path} cannot be used: {_reason(path)}. Replace it with a good copy. To go on "
        "without it, remove it from its class folder and delete the manifest of the data set."
    )


def _reason(path: Path) -> str:
    """What is wrong, as far as Pillow knows; DALI's own messages name an error number at most."""
    try:
        if path.stat().st_size == 0:
            return "the file is empty"
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            image.convert("RGB")
            return f"DALI cannot decode it ({image.format}, {image.mode}), though Pillow can"
    except FileNotFoundError:
        return "there is no such file"
    except PermissionError:
        return "it may not be read (permission denied)"
    except UnidentifiedImageError:
        return "it is no image, or in a format that is not supported"
    except Exception as error:  # Pillow raises anything from SyntaxError to ZeroDivisionError
        return " ".join(str(error).split()) or type(error).__name__
