"""Interaction data: read, filtered, split and stored."""

from kdrs.data._folders import looks_parted
from kdrs.data._options import Options
from kdrs.data.candidates import draw_candidates
from kdrs.data.dataset import Dataset, is_dataset
from kdrs.data.histories import Histories
from kdrs.data.ids import Ids
from kdrs.data.interactions import Interactions
from kdrs.data.known import KNOWN, fetch, known
from kdrs.data.prepare import PRESETS, Recipe, prepare, prepare_given
from kdrs.data.readers import from_frame, read, read_parts
from kdrs.data.table import Table

__all__ = [
    "KNOWN",
    "PRESETS",
    "Dataset",
    "Histories",
    "Ids",
    "Interactions",
    "Options",
    "Recipe",
    "Table",
    "draw_candidates",
    "fetch",
    "from_frame",
    "is_dataset",
    "known",
    "looks_parted",
    "prepare",
    "prepare_given",
    "read",
    "read_parts",
]
