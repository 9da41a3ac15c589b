"""What people look at: pictures of tables and of what a search found."""

from hwnas.report.breakdown import PICTURE_SUFFIXES, breakdown_figure, write_breakdown

__all__ = ["PICTURE_SUFFIXES", "breakdown_figure", "write_breakdown"]
