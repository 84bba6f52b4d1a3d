"""Reductions of an encoder's output to one vector per row; always in float32."""

from __future__ import annotations

import torch


def mean_of_image(states: torch.Tensor) -> torch.Tensor:
    """The mean over tokens ``[B, L, D]`` or places ``[B, D, H, W]``; float32 ``[B, D]``."""
    return states.float().mean(dim=1 if states.ndim == 3 else (2, 3))


def mean_of_text(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over the tokens ``[B, L, D]`` whose mask ``[B, L]`` is 1; float32 ``[B, D]``."""
    weights = mask.to(torch.float32).unsqueeze(-1)  # [B, L, 1]
    return (states.float() * weights).sum(dim=1) / weights.sum(dim=1)


def last_of_text(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last token ``[B, L, D]`` whose mask ``[B, L]`` is 1; float32 ``[B, D]``."""
    rows = torch.arange(len(states), device=states.device)
    return states[rows, mask.sum(dim=1) - 1].float()
