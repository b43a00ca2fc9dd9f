"""A run directory as one page that opens from disk, and as Markdown; made of its files alone."""

from ixjax.report.limits import Limits
from ixjax.report.rating_form import rating_form
from ixjax.report.report import write_report

__all__ = ["Limits", "rating_form", "write_report"]
