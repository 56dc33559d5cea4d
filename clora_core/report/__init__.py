"""A museum looked at: what every exhibit shows, what later learning changed, and what happened to everyday prompts."""

from .comparing import Compared
from .figures import exhibits_figure, moved_figure, overlap_figure
from .page import as_page
from .review import Looks, Report, reviewed

__all__ = [
    "Compared",
    "Looks",
    "Report",
    "as_page",
    "exhibits_figure",
    "moved_figure",
    "overlap_figure",
    "reviewed",
]
