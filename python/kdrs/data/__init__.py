"""Interaction data: read, filtered, split and stored."""

from kdrs.data.candidates import draw_candidates
from kdrs.data.dataset import Dataset
from kdrs.data.ids import Ids
from kdrs.data.interactions import Interactions

__all__ = ["Dataset", "Ids", "Interactions", "draw_candidates"]
