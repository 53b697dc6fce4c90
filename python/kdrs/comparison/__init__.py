"""Runs side by side: quality, what was kept of the teacher, size, speed, and whether a difference is more than luck."""

from __future__ import annotations

from kdrs.comparison.compare import Comparison, Entry, compare, scoring_seconds

__all__ = ["Comparison", "Entry", "compare", "scoring_seconds"]
