"""Reports of run directories, as an HTML page that opens from disk and as Markdown."""

from ixjax.report.limits import Limits
from ixjax.report.rating_form import rating_form
from ixjax.report.report import write_report

__all__ = ["Limits", "rating_form", "write_report"]
