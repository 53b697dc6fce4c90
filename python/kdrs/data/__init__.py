"""Interaction data: read, filtered, split and stored."""

from kdrs.data.interactions import Interactions

__all__ = ["Interactions"]
