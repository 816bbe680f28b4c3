"""Attention whose softmax is a module, which can be quantized as any other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["OpenAttention", "open_attention"]


class OpenAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with the same parameters and the same answers, whose softmax is the module ``softmax``."""

    softmax: nn.Module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's. ``is_causal`` changes nothing, because it needs the mask too."""
        one = query.dim() == 2
        first = self.batch_first and not one
        q, k, v = (x.unsqueeze(0) if one else x if first else x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._projected(q, k, v)
        n, added = q.shape[0], 0
        if self.bias_k is not None and self.bias_v is not None:
            k, v = torch.cat([k, self.bias_k.expand(n, -1, -1)], 1), torch.cat([v, self.bias_v.expand(n, -1, -1)], 1)
            added += 1
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, heads, tokens, size)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            added += 1
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        for mask, shape in ((attn_mask, (-1, *scores.shape[1:2])), (key_padding_mask, None)):
            if mask is not None:
                mask = F.pad(_added(mask, scores), (0, added))
                if shape is None:  # (N, keys)
                    mask = mask.view(-1, 1, 1, mask.shape[-1])
                elif mask.dim() == 3:  # (N * heads, queries, keys)
                    mask = mask.unflatten(0, shape)
                scores = scores + mask
        weights = F.dropout(self.softmax(scores), self.dropout, self.training)
        out: Tensor = self.out_proj((weights @ v).transpose(1, 2).flatten(2))
        out = out.squeeze(0) if one else out if first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights.squeeze(0) if one else weights

    def _projected(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.in_proj_weight is None:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        else:
            weights = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return (
            F.linear(q, weights[0], biases[0]),
            F.linear(k, weights[1], biases[1]),
            F.linear(v, weights[2], biases[2]),
        )


def open_attention(model: nn.Module) -> None:
    """Make every ``nn.MultiheadAttention`` of ``model`` an :class:`OpenAttention`, in place."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention:
            module.__class__ = OpenAttention
            module.softmax = nn.Softmax(-1).train(module.training)


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    """A mask as numbers that are added to scores: of true and false, true is left out."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill_(mask, -math.inf)
    return mask.to(scores.dtype)
