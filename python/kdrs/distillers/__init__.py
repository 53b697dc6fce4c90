"""Distillation methods: one file each, and the table of them. A method names no base model."""

from __future__ import annotations

from kdrs.distillers._hidden import assistant_dims
from kdrs.distillers.base import Distiller
from kdrs.distillers.bd import BD
from kdrs.distillers.cd import CD
from kdrs.distillers.de import DE
from kdrs.distillers.dgkd import DGKD
from kdrs.distillers.ftd import FTD
from kdrs.distillers.hetcomp import HetComp
from kdrs.distillers.hint import HintRegression
from kdrs.distillers.htd import HTD
from kdrs.distillers.hyperkdma import HyperKDMA
from kdrs.distillers.phr import PHR
from kdrs.distillers.rd import RD
from kdrs.distillers.rrd import RRD
from kdrs.distillers.takd import TAKD
from kdrs.errors import ConfigError, nearest

DISTILLERS: dict[str, type[Distiller]] = {
    "bd": BD,
    "cd": CD,
    "de": DE,
    "dgkd": DGKD,
    "ftd": FTD,
    "hetcomp": HetComp,
    "hint": HintRegression,
    "htd": HTD,
    "hyperkdma": HyperKDMA,
    "phr": PHR,
    "rd": RD,
    "rrd": RRD,
    "takd": TAKD,
}


def distiller_class(name: str) -> type[Distiller]:
    """The method of that name; ``ConfigError`` with the nearest names for any other."""
    if name not in DISTILLERS:
        raise ConfigError(f"unknown method {name!r}", nearest(name, DISTILLERS))
    return DISTILLERS[name]


__all__ = [
    "BD",
    "CD",
    "DE",
    "DGKD",
    "DISTILLERS",
    "FTD",
    "HTD",
    "PHR",
    "RD",
    "RRD",
    "TAKD",
    "Distiller",
    "HetComp",
    "HintRegression",
    "HyperKDMA",
    "assistant_dims",
    "distiller_class",
]
