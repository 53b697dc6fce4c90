"""Names that options take, for ``--help``, which imports nothing heavy. A test holds each list to the table it repeats."""

from __future__ import annotations

MODELS = (
    "bpr",
    "caser",
    "lightgcn",
    "lightgcn-ssm",
    "sasrec",
    "neumf",
    "ngcf",
    "sgl",
    "cml",
    "cdae",
    "multvae",
    "iae",
    "elsa",
)
METHODS = (
    "bd", "cd", "cpd", "dcd", "de", "dgkd", "freqd", "ftd", "hetcomp", "hint", "htd", "hyperkdma", "ir-rrd", "mkd", "nkd",
    "phr", "rd", "rce-kd", "rrd", "score-matching", "sld", "takd", "unkd",
)  # fmt: skip
PROTOCOLS = (
    "default", "loo-499", "hyperkdma", "loo-499-paper", "hetcomp", "kds", "bd", "bd-cdae", "caser",
)  # fmt: skip
OPTIMIZERS = ("adam", "lazy-adam", "adagrad")
TRACKERS = ("tensorboard", "mlflow", "wandb")
USERS = ("auto", "table", "encoded", "sum", "ridge")
PARTS = ("valid", "test")
SAMPLERS = ("auto", "random", "tpe")
TESTS = ("randomisation", "bootstrap")
FORMS = ("implicit", "recbole", "lightfm", "lenskit", "npz", "word2vec", "parquet", "npy", "lists")
SCRIPTED = ("recbole", "lightfm", "lenskit")
MISSING = ("refuse", "mean", "drop")
ITEMS_ALONE = ("mean", "none")
EXPORTS = ("student", "npz", "parquet", "word2vec", "faiss", "usearch", "onnx")
SEEN_PARTS = ("train", "all")
SETS = ("ml-100k", "citeulike-t", "citeulike-loo", "foursquare", "gowalla", "beauty")


def listed(names: tuple[str, ...]) -> str:
    """``a, b or c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
