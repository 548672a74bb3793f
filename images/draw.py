#!/usr/bin/env python
"""Draws the pictures of the documents from the code: `python images/draw.py`."""

import argparse
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Writes a PNG for every module draw_*.py beside this one."""
    parser = argparse.ArgumentParser(description="Draw the project's pictures.")
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="DIR", help="where (default: images/)"
    )
    out = parser.parse_args().out
    sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
    import draw_configurations
    import draw_errors
    import draw_flowers
    import draw_network
    import draw_plan
    import draw_step

    pictures = (
        *(draw_configurations, draw_errors),
        *(draw_flowers, draw_network, draw_plan, draw_step),
    )
    out.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        name = picture.__name__.removeprefix("draw_")
        picture.draw(out / f"{name}.png")


if __name__ == "__main__":
    main()
