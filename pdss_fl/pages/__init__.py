"""Self-contained HTML pages: one look, pictures inside, no script, nothing loaded, all text escaped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from pdss_fl.report import epsilon_text


def render(package: str, filters: Mapping[str, Callable[..., str]] | None = None, **values: Any) -> str:
    """Return the page that a package's ``page.html`` makes of values; it extends ``base.html`` beside this file.

    Parameters
    ----------
    package : str
        Where ``page.html`` lies, such as ``pdss_fl.run_report``.
    filters : Mapping[str, Callable[..., str]] | None (default: None)
        For this page only, beside ``number`` and ``percent``.
    **values : Any
        What the template names; one that is missing is an error.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("pdss_fl.pages", ".")]),
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": epsilon_text, "percent": percent, **(filters or {})}
    return environment.get_template("page.html").render(**values)


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f}%"
