"""A variational autoencoder over users."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdrs.compact.networks import RowNetwork
from kdrs.data.interactions import Interactions
from kdrs.models._arrays import array_of
from kdrs.models._variational import VariationalConfig, VariationalModel
from kdrs.training.queries import Batch, Queries, Task
from kdrs.training.rows import UserTask
from kdrs.training.view import DotView, Factors, View

BLOCK_USERS = 4096


class MultVAEConfig(VariationalConfig):
    dim: int = Field(64, ge=1)
    """Size of the latent vectors; the original network has 200."""
    form: Literal["ccd", "mult_vae"] = "ccd"
    """The form of CCD's code, which HetComp's teacher has, or the original network."""
    width: int = Field(600, ge=1)
    """Width of the hidden layers of ``mult_vae``."""


class MultVAE(VariationalModel):
    """Mult-VAE (Liang et al., WWW 2018), in the form of CCD's code unless ``form`` says otherwise.

        h    = tanh(E x' + e),  μ = W_μ h + c,  log σ = W_s h + c',  z = μ + ε σ
        s(u) = D z + f
        L    = mean over users of -Σ_i x'_ui log(softmax(s)_i + 1e-12) + β ½ Σ(μ² + σ² - 2 log σ)

    With x' the user's row brought to length 1: ``h = tanh(E x' + e)``, ``μ = W_μ h + c``, ``log σ = W_s h + c'``,
    ``z = μ + ε σ``, ``s(u, ·) = D z + f``. Loss, the mean over the batch's users: ``-Σ_i x'_ui log(softmax(s)_i + 1e-12) +
    β · ½ Σ(μ² + σ² - 2 log σ)``, β rising by 1 / 200,000 a step up to 0.2. Weights start Xavier-normal, biases N(0, 1).
    ``form="mult_vae"``: half the input is dropped, tanh layers ``I → 600 → dim → 600 → I``, target the raw 0/1 row, biases
    N(0, 0.001²).

    h(u) and h(i) are the vectors whose product is the score: μ (in the wide form, the last hidden layer) and the rows of D;
    no source defines them. h(u) carries no noise; scores in training do.

    Differs from CCD's code: ε is N(0, 1) and evaluation takes z = μ (``ccd_noise`` for its law); the softmax's denominator is
    made in blocks.
    """

    Config = MultVAEConfig
    why_not_compact = "learns by a loss of its own, not of rounded vectors"
    reference = "Liang et al., Variational autoencoders for collaborative filtering, WWW 2018"

    def __init__(self, config: MultVAEConfig, task: Task):
        super().__init__(config, task, task.seen, config.width if config.form == "mult_vae" else None)

    @classmethod
    def size_of(cls, config: MultVAEConfig) -> int:
        return config.width if config.form == "mult_vae" else config.dim

    @classmethod
    def train_defaults(cls, config: Any) -> dict[str, Any]:
        return {"batch_size": 512, "weight_decay": 0.0}

    @classmethod
    def make_task(cls, config: Any, train: Interactions, **options: Any) -> Task:
        return UserTask(train, **cls._row_options(options, "batch_size", "device", "threads"))

    def forward(self, queries: Queries) -> View:
        return UserView(self, queries, self.pass_seed())

    @torch.no_grad()
    def factors(self) -> Factors:
        users = torch.arange(self.n_rows, device=self.decoder_bias.device)
        decoded = torch.cat([self.sample(block, None)[0] for block in users.split(BLOCK_USERS)])
        return Factors(decoded, self.decoder.weight.detach(), self.decoder_bias.detach())

    def history_encoder(self) -> RowNetwork | None:
        if self.config.ccd_noise:  # a user's vector has noise of her own even in evaluation
            return None
        layers = [layer for layer in (self.mean, self.widen) if layer is not None]
        return RowNetwork(
            array_of(self.encoder),
            array_of(self.encoder_bias),
            [(array_of(layer.weight), array_of(layer.bias)) for layer in layers],
            activations=["tanh", "identity", "tanh"][: len(layers) + 1],
            power=0.5,
        )

    def loss(self, view: View, batch: Batch) -> Tensor:
        assert isinstance(view, UserView)
        return self.rows_loss(batch.unique_queries.ids, view.seed)


class UserView(DotView):
    """A view that knows the seed of its pass."""

    def __init__(self, model: MultVAE, queries: Queries, seed: int | None):
        self.seed = seed
        super().__init__(
            queries,
            lambda asked: model.sample(asked.users, seed)[0],
            model.decoder,
            lambda: model.decoder.weight,
            model.decoder_bias,
            (lambda asked: model.represent(asked.users), model.decoder),
        )
