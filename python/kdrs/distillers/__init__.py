"""Distillation methods: one file each, and the table of them. A method names no base model."""

from __future__ import annotations

from kdrs.distillers.base import Distiller
from kdrs.distillers.bd import BD
from kdrs.distillers.cd import CD
from kdrs.distillers.de import DE
from kdrs.distillers.hetcomp import HetComp
from kdrs.distillers.rrd import RRD
from kdrs.errors import ConfigError, nearest

DISTILLERS: dict[str, type[Distiller]] = {
    "bd": BD,
    "cd": CD,
    "de": DE,
    "hetcomp": HetComp,
    "rrd": RRD,
}


def distiller_class(name: str) -> type[Distiller]:
    """The method of that name; ``ConfigError`` with the nearest names for any other."""
    if name not in DISTILLERS:
        raise ConfigError(f"unknown method {name!r}", nearest(name, DISTILLERS))
    return DISTILLERS[name]


__all__ = ["BD", "CD", "DE", "DISTILLERS", "RRD", "Distiller", "HetComp", "distiller_class"]
