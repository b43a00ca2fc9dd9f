"""The rating form: one static page that saves a JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ixjax.report.page import asset, render


def rating_form(task: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        task: `schema` and `version` of the saved file, `task` (a fingerprint of the items),
            `question`, and `items`: each with an `id`, a `condition` and the turns of `A` and `B`.
    """
    return render(
        "rating.html",
        styles=("base.css", "rating.css"),
        scripts=[asset("elements.js"), asset("rating.js")],
        data={"task": task},
    )
