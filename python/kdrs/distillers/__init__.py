"""Distillation methods: one file each, and the table of them. A method names no base model."""

from __future__ import annotations

from kdrs.distillers._hidden import assistant_dims
from kdrs.distillers.base import Distiller
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
from kdrs.errors import ConfigError, nearest

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


def distiller_class(name: str) -> type[Distiller]:
    """The method of that name; ``ConfigError`` with the nearest names for any other."""
    if name not in DISTILLERS:
        raise ConfigError(f"unknown method {name!r}", nearest(name, DISTILLERS))
    return DISTILLERS[name]


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
    "UnKD",
    "assistant_dims",
    "distiller_class",
]
