"""Base models: one file each, and the table of them. A model names no distillation method."""

from __future__ import annotations

from kdrs.models.base import ModelConfig, Recommender
from kdrs.models.bpr import BPR
from kdrs.models.caser import Caser
from kdrs.models.cdae import CDAE
from kdrs.models.cml import CML
from kdrs.models.elsa import ELSA
from kdrs.models.iae import IAE
from kdrs.models.lightgcn import LightGCN
from kdrs.models.lightgcn_ssm import LightGCNSSM
from kdrs.models.multvae import MultVAE
from kdrs.models.neumf import NeuMF
from kdrs.models.ngcf import NGCF
from kdrs.models.sasrec import SASRec
from kdrs.models.sgl import SGL
from kdrs.plugins import Kind

MODELS: dict[str, type[Recommender]] = {
    "bpr": BPR,
    "caser": Caser,
    "lightgcn": LightGCN,
    "lightgcn-ssm": LightGCNSSM,
    "sasrec": SASRec,
    "neumf": NeuMF,
    "ngcf": NGCF,
    "sgl": SGL,
    "cml": CML,
    "cdae": CDAE,
    "multvae": MultVAE,
    "iae": IAE,
    "elsa": ELSA,
}


KIND: Kind[Recommender] = Kind(
    "model",
    "kdrs.models",
    MODELS,
    Recommender,
    "kdrs.models.Recommender",
    ("forward", "loss"),
    ModelConfig,
    "kdrs.models.ModelConfig",
    ("config", "task"),
)


def model_class(name: str) -> type[Recommender]:
    """The model of that name: one of ours, of an installed package (entry points ``kdrs.models``), or ``module:Class``.

    Raises `kdrs.plugins.ClassError`, a ``ConfigError``, with the nearest names where there is none, and for a class that cannot
    be imported or is none.
    """
    return KIND.find(name)


__all__ = [
    "BPR",
    "CDAE",
    "CML",
    "ELSA",
    "IAE",
    "KIND",
    "MODELS",
    "NGCF",
    "SGL",
    "Caser",
    "LightGCN",
    "LightGCNSSM",
    "ModelConfig",
    "MultVAE",
    "NeuMF",
    "Recommender",
    "SASRec",
    "model_class",
]
