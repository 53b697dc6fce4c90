"""Distillation methods: one file each, and the table of them. A method names no base model.

**A distiller** compares two views. ``draw(epoch)`` is what does not depend on the student (it runs ahead),
``on_epoch_start(epoch, samples, student)`` what does. ``loss(student, batch)`` is a scalar, unweighted, summed (RD's:
as the student's own).

**Options** of one meaning have one name in every method. A ``temperature`` divides (flatter when higher), a
``sharpness`` multiplies. Where a method's softmax has a temperature, that of its draws by rank is
``draw_temperature``. ``pool`` is the length of the list that is drawn from, ``refresh`` the epochs between two looks
at a ranking that changes. ``unique_queries`` counts a query once a batch, ``keep_seen`` leaves seen items in.
``..._weight`` is a number that multiplies a loss.

**Hints** (`_hidden`) are what DE, PHR, TAKD, DGKD and HyperKDMA share: one loss an entity between two spaces, by
networks of their own, summed over the batch's distinct users and items. A method may put several together, of targets
that carry gradient too.
"""

from __future__ import annotations

import re

from kdrs.distillers._hidden import assistant_dims
from kdrs.distillers.base import Distiller, only
from kdrs.distillers.bd import BD
from kdrs.distillers.cd import CD
from kdrs.distillers.cpd import CPD
from kdrs.distillers.dcd import DCD
from kdrs.distillers.de import DE
from kdrs.distillers.dgkd import DGKD
from kdrs.distillers.freqd import FreqD
from kdrs.distillers.ftd import FTD
from kdrs.distillers.hetcomp import HetComp
from kdrs.distillers.hint import HintRegression
from kdrs.distillers.htd import HTD
from kdrs.distillers.hyperkdma import HyperKDMA
from kdrs.distillers.ir_rrd import IRRRD
from kdrs.distillers.mkd import MKD
from kdrs.distillers.nkd import NKD
from kdrs.distillers.phr import PHR
from kdrs.distillers.rce_kd import RCEKD
from kdrs.distillers.rd import RD
from kdrs.distillers.rrd import RRD
from kdrs.distillers.score_matching import ScoreMatching
from kdrs.distillers.sld import SLD
from kdrs.distillers.takd import TAKD
from kdrs.distillers.unkd import UnKD
from kdrs.errors import shown
from kdrs.plugins import ClassError, Kind
from kdrs.settings import Settings

DISTILLERS: dict[str, type[Distiller]] = {
    "bd": BD,
    "cd": CD,
    "cpd": CPD,
    "dcd": DCD,
    "de": DE,
    "dgkd": DGKD,
    "freqd": FreqD,
    "ftd": FTD,
    "hetcomp": HetComp,
    "hint": HintRegression,
    "htd": HTD,
    "hyperkdma": HyperKDMA,
    "ir-rrd": IRRRD,
    "mkd": MKD,
    "nkd": NKD,
    "phr": PHR,
    "rd": RD,
    "rce-kd": RCEKD,
    "rrd": RRD,
    "score-matching": ScoreMatching,
    "sld": SLD,
    "takd": TAKD,
    "unkd": UnKD,
}


KIND: Kind[Distiller] = Kind(
    "method",
    "kdrs.distillers",
    DISTILLERS,
    Distiller,
    "kdrs.distillers.Distiller",
    ("loss",),
    Settings,
    "kdrs.distillers.Settings",
    ("config", "teachers", "task", "student_dim", "seed"),
)


def distiller_class(name: str) -> type[Distiller]:
    """The method of that name: one of ours, of an installed package (entry points ``kdrs.distillers``), or ``module:Class``.

    Raises as `kdrs.models.model_class` does.
    """
    several = re.split(r"[+, ]+", name)
    if name not in DISTILLERS and len(several) > 1 and all(part in DISTILLERS for part in several):
        raise ClassError(
            f"unknown method {shown(name)!r}",
            f"several are a sum of terms: {' '.join(f'--method {part}' for part in several)}, or a [[distill]] of each",
        )
    return KIND.find(name)


__all__ = [
    "BD",
    "CD",
    "CPD",
    "DCD",
    "DE",
    "DGKD",
    "DISTILLERS",
    "FTD",
    "HTD",
    "IRRRD",
    "KIND",
    "MKD",
    "NKD",
    "PHR",
    "RCEKD",
    "RD",
    "RRD",
    "SLD",
    "TAKD",
    "Distiller",
    "FreqD",
    "HetComp",
    "HintRegression",
    "HyperKDMA",
    "ScoreMatching",
    "Settings",
    "UnKD",
    "assistant_dims",
    "distiller_class",
    "only",
]
