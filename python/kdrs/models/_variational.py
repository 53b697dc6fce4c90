"""The variational autoencoder over rows that Mult-VAE (rows are users) and I-AE (rows are items) share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdrs.data.interactions import Interactions
from kdrs.models._noise import normal, uniform
from kdrs.models._rows import RowModel, Rows
from kdrs.models.base import ModelConfig
from kdrs.training.losses import logsumexp_products
from kdrs.training.queries import Task

EVALUATION = 0
"""Seed of the noise in evaluation, where there is any."""


class VariationalConfig(ModelConfig):
    ccd_noise: bool = False
    """Noise as in CCD's code: uniform on [0, 1) in place of standard normal, and in evaluation too."""
    kl: float = Field(0.2, ge=0)
    """Largest weight of the divergence."""
    kl_steps: int = Field(200_000, ge=1)
    """Its weight is the number of losses computed so far over this, up to the largest."""
    reduction: Literal["mean", "sum"] = "mean"
    """Loss of a batch: mean over its rows, as published, or their sum."""


class VariationalModel(RowModel):
    """``x'`` is the row brought to length 1; ``h = tanh(E x' + e)``; ``μ = W_μ h + c``, ``log σ = W_s h + c'``;
    ``z = μ + ε σ``; ``p = softmax(D z + f)``. With ``wide`` the input loses half its entries, E and D are that wide, and
    ``D tanh(W z + b)`` takes the place of ``D z``.

    ``decoded`` below are the vectors that D is multiplied with.
    """

    config: VariationalConfig
    steps: Tensor

    def __init__(self, config: VariationalConfig, task: Task, seen: Interactions, wide: int | None = None):
        super().__init__(config, task)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.rows, (self.n_rows, n_columns) = Rows(seen, task.device), seen.shape
        self.latent, self.wide = config.dim, wide
        width = self.dim
        self.encoder = nn.Parameter(torch.empty(n_columns, width))
        self.encoder_bias = nn.Parameter(torch.empty(width))
        self.mean, self.log_sd = (nn.Linear(width, config.dim) for _ in range(2))
        self.widen = nn.Linear(config.dim, width) if wide else None
        self.decoder = nn.Embedding(n_columns, width)
        self.decoder_bias = nn.Parameter(torch.empty(n_columns))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=1e-3 if wide else 1.0)
            else:
                nn.init.xavier_normal_(parameter)

    def posterior(self, rows: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
        """μ and log σ of rows, float32 [R, latent] each."""
        sums = self.rows.sums(rows, self.encoder, 0.5 if self.wide else 0.0, seed)
        lengths = self.rows.degrees(rows).clamp(min=1).sqrt().unsqueeze(1)  # a row without entries is 0, not 0/0
        hidden = torch.tanh(sums / lengths + self.encoder_bias)
        return self.mean(hidden), self.log_sd(hidden)

    def decode(self, latent: Tensor) -> Tensor:
        return latent if self.widen is None else torch.tanh(self.widen(latent))

    def represent(self, rows: Tensor) -> Tensor:
        """float32 [R, D]: decoded means, without noise."""
        return self.decode(self.posterior(rows, None)[0])

    def sample(self, rows: Tensor, seed: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Decoded vectors with the noise of a pass, or of evaluation for no seed; μ; log σ."""
        mean, log_sd = self.posterior(rows, seed)
        if seed is None and not self.config.ccd_noise:
            return self.decode(mean), mean, log_sd
        keys = rows.unsqueeze(1) * self.latent + torch.arange(self.latent, device=rows.device)
        law = uniform if self.config.ccd_noise else normal
        # the upper half of the keys: the lower one decides which entries the encoder sees
        noise = law(EVALUATION if seed is None else seed, keys + 2**62)
        return self.decode(mean + noise * log_sd.exp()), mean, log_sd

    def rows_loss(self, rows: Tensor, seed: int | None) -> Tensor:
        """Multinomial cross-entropy of rows plus the weighted divergence; 1e-12 stands beside every probability."""
        decoded, mean, log_sd = self.sample(rows, seed)
        places, columns, _ = self.rows.entries(rows)
        own = (F.embedding(places, decoded) * self.decoder(columns)).sum(-1)
        own = own + F.embedding(columns, self.decoder_bias.unsqueeze(1)).squeeze(1)
        log_p = own - logsumexp_products(decoded, self.decoder.weight, self.decoder_bias)[places]
        log_p = torch.logaddexp(log_p, log_p.new_tensor(1e-12).log())
        if not self.wide:
            log_p = log_p * self.rows.degrees(rows).clamp(min=1).rsqrt()[places]
        divergence = 0.5 * (mean.square() + (2 * log_sd).exp() - 2 * log_sd).sum()
        weight = (self.steps / self.config.kl_steps).clamp(max=self.config.kl)
        if self.training:
            self.steps += 1
        loss = weight * divergence - log_p.sum()
        return loss / rows.shape[0] if self.averages else loss
