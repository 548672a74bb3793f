#!/usr/bin/env python
"""tensorboard.png: TensorBoard on a run of the digits, photographed in a headless Chromium.

`images/draw.py` leaves it out, since it needs a browser and a run of `make quickstart`:

    python images/draw_tensorboard.py runs/quickstart
"""

import argparse
import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).resolve().parent
PAGES = ("custom_scalars", "images")
"""Left and right half of the picture."""
WIDTH, HEIGHT, COLORS = 1170, 800, 160


def main() -> None:
    """Writes the picture."""
    sys.path.insert(0, str(FOLDER.parent))
    from tests.browser import Browser, wait_for, what_is_missing
    from vggdist.distributed.port import free_port

    parser = argparse.ArgumentParser(description="Draw the picture of TensorBoard.")
    parser.add_argument("run", type=Path, help="run folder of a training")
    parser.add_argument("--out", type=Path, default=FOLDER / "tensorboard.png", metavar="PNG")
    arguments = parser.parse_args()
    if (missing := what_is_missing()) is not None:
        parser.error(missing)
    port = free_port()
    logdir = f"--logdir={arguments.run / 'tensorboard'}"
    command = [sys.executable, "-m", "tensorboard.main", logdir, f"--port={port}"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    sheet = Image.new("RGB", (len(PAGES) * WIDTH, HEIGHT), "white")
    try:
        with (
            tempfile.TemporaryDirectory() as profile,
            Browser(Path(profile), WIDTH, HEIGHT + 200) as browser,
        ):
            for number, page in enumerate(PAGES):
                browser.open("about:blank")
                url = f"http://127.0.0.1:{port}/#{page}"
                is_shown = wait_for(lambda url=url: browser.open(url) is None, 60) and wait_for(
                    lambda: browser.text().count("Loss") or browser.text().count("[image ") > 3, 60
                )
                if not is_shown:
                    sys.exit(f"{page} shows nothing: {browser.text()}")
                wait_for(lambda: False, 5)  # until curves are drawn and pictures loaded
                shot = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
                sheet.paste(shot.crop((0, 0, WIDTH, HEIGHT)), (number * WIDTH, 0))
    finally:
        server.terminate()
        server.wait(timeout=30)
    sheet.quantize(COLORS).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
