"""Lines to run where another library is installed, for files that are pickles or need it: they write plain arrays."""

from __future__ import annotations

HEAD = """\
# Run this in the environment of {library}, after training, where {names} are at hand.
# It writes arrays without objects. Then, with kdrs: kdrs teacher import teacher.npz --from {form} --data DATA --out T
import numpy as np
"""

RECBOLE = (
    HEAD.format(library="RecBole", form="recbole", names="`model` and `dataset`")
    + """\
import torch
from recbole.data.interaction import Interaction

# From a saved model: config, model, dataset, *_ = recbole.quick_start.load_data_and_model("saved/....pth")
model.eval()
with torch.no_grad():
    asked = Interaction({dataset.uid_field: torch.tensor([1])}).to(model.device)
    scores = model.full_sort_predict(asked).view(-1)
    if getattr(model, "restore_user_e", None) is not None:
        # LightGCN, NGCF, SGL, ...: the propagated vectors; the state dict has layer 0 of them alone
        user_vectors, item_vectors = model.restore_user_e, model.restore_item_e
    elif hasattr(model, "user_embedding") and hasattr(model, "item_embedding"):  # BPR, ...
        user_vectors, item_vectors = model.user_embedding.weight, model.item_embedding.weight
    else:
        raise SystemExit(f"{type(model).__name__} has no vectors of users and items: export lists (docs/teachers.md)")
    product = item_vectors @ user_vectors[1]
if product.shape != scores.shape or not torch.allclose(product, scores, rtol=1e-3, atol=1e-4):  # NeuMF, ...
    raise SystemExit(f"{type(model).__name__} scores by more than a product of vectors: export lists (docs/teachers.md)")
user_ids = dataset.field2id_token[dataset.uid_field]
item_ids = dataset.field2id_token[dataset.iid_field]
assert str(user_ids[0]) == str(item_ids[0]) == "[PAD]"  # row 0 is padding
np.savez(
    "teacher.npz",
    users=user_vectors.detach().cpu().numpy()[1:],
    items=item_vectors.detach().cpu().numpy()[1:],
    user_ids=np.asarray(user_ids[1:], dtype=str),
    item_ids=np.asarray(item_ids[1:], dtype=str),
)
"""
)

LIGHTFM = (
    HEAD.format(
        library="LightFM",
        form="lightfm",
        names="`model`, `dataset` (lightfm.data.Dataset) and the matrices of features, or None,",
    )
    + """\

user_features = globals().get("user_features")  # as they were given to fit
item_features = globals().get("item_features")
user_biases, user_vectors = model.get_user_representations(user_features)
item_biases, item_vectors = model.get_item_representations(item_features)
user_map, _, item_map, _ = dataset.mapping()  # id -> row


def in_order(mapping):
    return np.asarray([str(name) for name, _ in sorted(mapping.items(), key=lambda entry: entry[1])], dtype=str)


np.savez(
    "teacher.npz",
    users=user_vectors,  # a user's bias changes no ranking
    items=item_vectors,
    item_bias=item_biases,
    user_ids=in_order(user_map),
    item_ids=in_order(item_map),
)
"""
)

LENSKIT = (
    HEAD.format(library="LensKit", form="lenskit", names="the trained pipeline `pipe`")
    + """\

scorer = pipe.node("scorer").component
assert type(scorer).__name__ in ("ImplicitMFScorer",), "biased models add terms that a product lacks: export lists"
np.savez(
    "teacher.npz",
    users=np.asarray(scorer.user_embeddings),
    items=np.asarray(scorer.item_embeddings),
    user_ids=np.asarray([str(name) for name in scorer.users.ids()], dtype=str),
    item_ids=np.asarray([str(name) for name in scorer.items.ids()], dtype=str),
)
"""
)

SCRIPTS = {"recbole": RECBOLE, "lightfm": LIGHTFM, "lenskit": LENSKIT}
"""By the name of the form."""
