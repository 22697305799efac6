"""A real browser without a screen: what a page draws, says on its console, and asks the network for."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import image
from numpy.typing import NDArray

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Opened:
    """``pixels`` is (height, width, channels) in 0..1; ``console`` and ``requests`` are empty for a quiet page."""

    pixels: NDArray[np.float32]
    console: list[str]
    requests: list[str]


def open_page(page: Path, width: int = 1200, height: int = 2400) -> Opened:
    """Open a file in headless Chromium."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    assert program, f"no browser is installed; the tests of pages need one of {', '.join(_NAMES)}"
    with tempfile.TemporaryDirectory() as folder:
        picture, network = Path(folder) / "page.png", Path(folder) / "network.json"
        done = subprocess.run(
            [
                program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={folder}/profile", f"--window-size={width},{height}", "--enable-logging=stderr",
                f"--log-net-log={network}", f"--screenshot={picture}", page.absolute().as_uri(),
            ],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        return Opened(image.imread(picture), said, _asked_by_the_page(network))


def _asked_by_the_page(log: Path) -> list[str]:
    """Return the addresses that a page asked for; the browser's own requests have no origin."""
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked = [str(p["url"]) for p in events if p.get("initiator", "not an origin") != "not an origin"]
    return [url for url in asked if not url.startswith(("file:", "data:"))]
