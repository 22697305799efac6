"""Pictures of matplotlib as data that stands in a page itself."""

from __future__ import annotations

import base64
import io
from typing import Any

_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # nothing of this machine, and no address


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, which takes a second to load, drawing without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as loaded

    return loaded


def as_data(figure: Any) -> str:
    """Return a figure as an SVG ``data:`` address, and close it."""
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata=_METADATA)
    pyplot().close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
