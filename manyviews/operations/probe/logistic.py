"""Linear models by L-BFGS, whose hyperparameters are chosen on dev.

The loss is the logistic one of each class for several labels a sample, that of the softmax for one
class, and half the squared error for values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from featurestore.labels.label_set import MULTI_LABEL, VALUE, Kind

# Weight decays to try, from strong to weak; each fit starts from the result of the previous one.
DECAYS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)
# The search ends after this many successive decays without an improvement on dev.
_PATIENCE = 2
_ROUND, _MOST_ROUNDS = 10, 50  # iterations per round, and rounds
# The last round is the one that reduces the loss on dev by a smaller share than this.
_ENOUGH = 1e-5
_ROWS = 4096  # rows per step, to avoid a copy of all rows


@dataclass(frozen=True, slots=True)
class Part:
    """The samples of one part of a split.

    Attributes:
        x: finite features, float ``[n, D]``.
        y: labels ``[n, C]``: multi-hot, one-hot, or values of about unit scale.
    """

    x: Tensor
    y: Tensor


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A fitted linear model, with one column per class.

    Attributes:
        center: float64 ``[D]``, mean of the training rows.
        scale: float64 ``[D]``, standard deviation of the training rows.
        weight: float64 ``[D, C]``, for standardised rows.
        bias: float64 ``[C]``.
        weight_decay: the chosen weight decay.
        dev_loss: loss on dev, see :func:`loss_of`.
        kind: the kind of the labels.
    """

    center: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    weight_decay: float
    dev_loss: float
    kind: Kind = MULTI_LABEL

    def predict(self, x: Tensor) -> Tensor:
        """Predicts the probability of each class, or the value, for rows float ``[n, D]``.

        Returns:
            float64 ``[n, C]``.
        """
        parts = [self._outputs(self._logits(rows)) for rows in torch.split(x, _ROWS)]
        return torch.cat(parts)

    def _outputs(self, logits: Tensor) -> Tensor:
        if self.kind == VALUE:
            return logits
        return logits.sigmoid() if self.kind == MULTI_LABEL else logits.softmax(dim=1)

    def _logits(self, x: Tensor) -> Tensor:
        return _standardize(x, self.center, self.scale) @ self.weight + self.bias


def _standardize(x: Tensor, center: Tensor, scale: Tensor) -> Tensor:
    # In place: the difference is a new float64 array, half a gigabyte for the whole data set.
    return (x - center).div_(scale)


def fit_probe(
    train: Part, dev: Part, decays: tuple[float, ...] = DECAYS, kind: Kind = MULTI_LABEL
) -> LinearProbe:
    """Fits on ``train``, with the weight decay and the iterations of the lowest loss on ``dev``.

    Computes in float64, starts from zero, and draws nothing at random. Needs 8 bytes for every
    value of ``train`` and ``dev``.

    Args:
        train: the training samples, at least one.
        dev: the samples to choose on, at least one, with the same columns.
        decays: weight decays to try, from strong to weak.
        kind: the kind of the labels.

    Raises:
        ValueError: shapes do not match, or values are not finite.
    """
    check_parts(train=train, dev=dev)
    center = _mean(train.x)
    scale = (_mean(train.x, center) + 1e-12).sqrt()
    x, y = _standardize(train.x, center, scale), train.y.double()
    held_out = Part(_standardize(dev.x, center, scale), dev.y.double())
    weight, bias = x.new_zeros(x.shape[1], y.shape[1]), x.new_zeros(y.shape[1])
    best = LinearProbe(center, scale, weight, bias, decays[0], math.inf, kind)
    worse = 0
    for decay in decays:
        weight, bias, loss = fit(Part(x, y), decay, (weight, bias), held_out, kind)
        if loss < best.dev_loss:
            best, worse = LinearProbe(center, scale, weight, bias, decay, loss, kind), 0
        else:
            worse += 1
            if worse == _PATIENCE:
                break
    return best


def _mean(x: Tensor, center: Tensor | None = None) -> Tensor:
    """The mean of the columns, or of their squared distance from ``center``; float64 ``[D]``."""
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for rows in torch.split(x, _ROWS):
        wide = rows.double()
        total += wide.sum(0) if center is None else wide.sub_(center).square_().sum(0)
    return total / len(x)


def check_parts(**parts: Part) -> None:
    """Checks shapes and values.

    Raises:
        ValueError: features and labels do not match, or features are not finite.
    """
    first = next(iter(parts.values()))
    for name, part in parts.items():
        if part.x.ndim != 2 or part.y.ndim != 2 or len(part.x) != len(part.y) or not len(part.x):
            raise ValueError(
                f"{name}: features {list(part.x.shape)} do not match labels {list(part.y.shape)}"
            )
        if not all(torch.isfinite(rows).all() for rows in torch.split(part.x, _ROWS)):
            raise ValueError(f"{name}: features are not finite")
        if part.x.shape[1] != first.x.shape[1] or part.y.shape[1] != first.y.shape[1]:
            raise ValueError(f"{name}: the columns differ from those of the training data")


def loss_of(part: Part, weight: Tensor, bias: Tensor, kind: Kind = MULTI_LABEL) -> float:
    """The loss, summed over classes, mean over samples: in nats, or half the squared error."""
    return float(_loss(part, weight, bias, kind))


def _loss(part: Part, weight: Tensor, bias: Tensor, kind: Kind) -> Tensor:
    logits = part.x @ weight + bias
    if kind == VALUE:
        return 0.5 * mse_loss(logits, part.y)
    if kind == MULTI_LABEL:
        return binary_cross_entropy_with_logits(logits, part.y, reduction="sum") / len(part.x)
    return cross_entropy(logits, part.y)


def fit(
    train: Part,
    weight_decay: float,
    start: tuple[Tensor, Tensor],
    dev: Part | None = None,
    kind: Kind = MULTI_LABEL,
) -> tuple[Tensor, Tensor, float]:
    """Minimises the loss plus half the decayed squared norm of the weights.

    Args:
        train: the training samples, float64, of about unit scale.
        weight_decay: factor of the penalty of the weights; the bias has no penalty.
        start: initial weights float64 ``[D, C]`` and bias float64 ``[C]``.
        dev: the samples for early stopping, float64, or None. The loss on dev is computed every 10
            iterations; the parameters with the lowest one are returned.
        kind: the kind of the labels.

    Returns:
        Weights, bias, and the loss on ``dev``, or NaN without ``dev``.
    """
    weight, bias = (t.clone().requires_grad_() for t in start)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_ROUND, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = _loss(train, weight, bias, kind) + 0.5 * weight_decay * weight.square().sum()
        torch.autograd.backward(value)
        return value

    best = (*start, math.nan if dev is None else loss_of(dev, *start, kind))
    for _ in range(_MOST_ROUNDS):
        before = weight.detach().clone()
        optimizer.step(objective)  # type: ignore[no-untyped-call]
        now = (weight.detach().clone(), bias.detach().clone())
        loss = math.nan if dev is None else loss_of(dev, *now, kind)
        if loss >= best[2]:
            break
        is_enough = best[2] - loss < _ENOUGH * loss  # always False without dev: the losses are NaN
        best = (*now, loss)
        if is_enough or torch.equal(before, now[0]):
            break
    return best
