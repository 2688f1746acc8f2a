"""A picture of a circuit's page, as a browser shows it: docs/images/page.png.

python benchmarks/page_picture.py PAGE.html PICTURE.png [--fragment "#pick=a9.h10"] [--width 1280] [--dark]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path


def main() -> None:
    """Draw what the first screen shows."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--fragment", default="")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--dark", action="store_true")
    chosen = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        size = {"width": chosen.width, "height": chosen.height}
        page = browser.new_page(viewport=size, color_scheme="dark" if chosen.dark else "light")
        page.goto(f"{chosen.page.absolute().as_uri()}{chosen.fragment}")
        page.wait_for_selector("svg.graph .node")
        page.screenshot(path=chosen.picture)
        browser.close()


if __name__ == "__main__":
    main()
