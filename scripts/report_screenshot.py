"""Takes the screenshot of a report for the README: docs/report.png.

    python -m malt_jax.train --run-dir runs/quickstart
    python scripts/report_screenshot.py runs/quickstart

It needs playwright and a Chromium of the system, and opens the tree with the largest spread.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright
from upath import UPath

from malt_jax.viewer.page import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PICTURE = Path(__file__).parent.parent / "docs" / "report.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="the directory of a finished run")
    parser.add_argument("--out", type=Path, default=PICTURE, help="default: %(default)s")
    options = parser.parse_args()
    file = write_report(UPath(options.run.absolute()))
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        parser.error(f"no browser is installed; tried {', '.join(BROWSERS)}")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": 1240, "height": 930}, color_scheme="light")
        page.goto(f"file://{file}#/trees?sort=spread&show=disputed")
        page.wait_for_selector(".row")
        page.keyboard.press("Enter")
        page.wait_for_selector(".card")
        page.keyboard.press("ArrowRight")
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=options.out)
        opened.close()
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
