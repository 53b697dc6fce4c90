"""Base models: one file each, and the table of them. A model names no distillation method."""

from __future__ import annotations

from kdrs.errors import ConfigError, nearest
from kdrs.models.base import ModelConfig, Recommender
from kdrs.models.bpr import BPR
from kdrs.models.caser import Caser
from kdrs.models.cdae import CDAE
from kdrs.models.cml import CML
from kdrs.models.iae import IAE
from kdrs.models.lightgcn import LightGCN
from kdrs.models.multvae import MultVAE
from kdrs.models.neumf import NeuMF
from kdrs.models.ngcf import NGCF
from kdrs.models.sasrec import SASRec
from kdrs.models.sgl import SGL

MODELS: dict[str, type[Recommender]] = {
    "bpr": BPR,
    "caser": Caser,
    "lightgcn": LightGCN,
    "sasrec": SASRec,
    "neumf": NeuMF,
    "ngcf": NGCF,
    "sgl": SGL,
    "cml": CML,
    "cdae": CDAE,
    "multvae": MultVAE,
    "iae": IAE,
}


def model_class(name: str) -> type[Recommender]:
    """The model of that name; ``ConfigError`` with the nearest names for any other."""
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}", nearest(name, MODELS))
    return MODELS[name]


__all__ = [
    "BPR",
    "CDAE",
    "CML",
    "IAE",
    "MODELS",
    "NGCF",
    "SGL",
    "Caser",
    "LightGCN",
    "ModelConfig",
    "MultVAE",
    "NeuMF",
    "Recommender",
    "SASRec",
    "model_class",
]
