"""A linear probe: what logistic regression reads from frozen features, against chance."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

_CHANCE_DRAWS = 500
_THRESHOLDS = tuple(step / 20 for step in range(1, 20))


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How well the labels of a test set are predicted; every number is in [0, 1].

    Attributes:
        micro_f1: F1 of all (sample, class) decisions pooled.
        macro_f1: mean F1 of the classes that occur in the test labels.
        chance_micro_f1: expected micro F1 of drawing classes at their training frequencies.
        chance_macro_f1: expected macro F1 of the same.
    """

    micro_f1: float
    macro_f1: float
    chance_micro_f1: float
    chance_macro_f1: float


def linear_probe(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    weight_decay: float = 1e-2,
    steps: int = 200,
    seed: int = 0,
) -> ProbeResult:
    """Trains one logistic regression per class on ``train`` and scores it on ``test``.

    The decision threshold is chosen on the training data. The optimum is unique and the start is
    zero, so that ``seed`` moves only the draws behind the chance level.

    Args:
        train_x: float [n, D], finite.
        train_y: multi-hot [n, C], 0 or 1.
        test_x: float [m, D], finite.
        test_y: multi-hot [m, C], 0 or 1, with at least one 1.
        weight_decay: the weight of half the squared norm, beside the mean loss per class.
        steps: the most L-BFGS iterations.
        seed: of the chance level's draws.

    Raises:
        ValueError: shapes do not match, values are not finite, or there is nothing to score.
    """
    _check(train_x, train_y, test_x, test_y)
    # Float64 throughout: the data are small, and the result then depends little on the machine.
    train_y, test_y = train_y.double(), test_y.double()
    scale = train_x.double().std(0, correction=0) + 1e-6
    center = train_x.double().mean(0)
    train_x, test_x = ((x.double() - center) / scale for x in (train_x, test_x))
    weight, bias = fit(train_x, train_y, weight_decay, steps)
    threshold = _best_threshold(torch.sigmoid(train_x @ weight + bias), train_y)
    predicted = torch.sigmoid(test_x @ weight + bias) > threshold
    micro, macro = f1_scores(predicted, test_y > 0.5)
    chance_micro, chance_macro = _chance(train_y.mean(0), test_y > 0.5, seed)
    return ProbeResult(micro, macro, chance_micro, chance_macro)


def _check(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    for name, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) == 0:
            raise ValueError(f"{name}: features {list(x.shape)} do not fit labels {list(y.shape)}")
        if not torch.isfinite(x).all():
            raise ValueError(f"{name}: features are not finite")
    if train_x.shape[1] != test_x.shape[1] or train_y.shape[1] != test_y.shape[1]:
        raise ValueError(
            f"train {list(train_x.shape)}, {list(train_y.shape)} and "
            f"test {list(test_x.shape)}, {list(test_y.shape)} differ in their columns"
        )
    if not (test_y > 0.5).any():
        raise ValueError("the test labels hold no class, so there is nothing to score")


def fit(x: Tensor, y: Tensor, weight_decay: float, steps: int) -> tuple[Tensor, Tensor]:
    """Minimises the logistic loss, a mean over samples, plus half the decayed squared norm.

    Args:
        x: float64 [n, D], of about unit scale.
        y: float64 [n, C], 0 or 1.
        weight_decay: acts on the weights alone, not on the bias.
        steps: the most L-BFGS iterations.

    Returns:
        Weights float64 [D, C] and bias float64 [C].
    """
    weight = x.new_zeros(x.shape[1], y.shape[1], requires_grad=True)
    bias = x.new_zeros(y.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        data = binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="none")
        value = data.mean(0).sum() + 0.5 * weight_decay * weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


def _best_threshold(probability: Tensor, y: Tensor) -> float:
    scores = [f1_scores(probability > t, y > 0.5)[0] for t in _THRESHOLDS]
    best = [t for t, score in zip(_THRESHOLDS, scores, strict=True) if score == max(scores)]
    # Separable training data leave a wide range of equals; its middle is furthest from harm.
    return best[len(best) // 2]


def _chance(frequency: Tensor, truth: Tensor, seed: int) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(seed)
    frequency, truth = frequency.cpu(), truth.cpu()
    micro_sum = macro_sum = 0.0
    for _ in range(_CHANCE_DRAWS):
        drawn = torch.rand(truth.shape, generator=generator, dtype=torch.float64) < frequency
        micro, macro = f1_scores(drawn, truth)
        micro_sum += micro
        macro_sum += macro
    return micro_sum / _CHANCE_DRAWS, macro_sum / _CHANCE_DRAWS


def f1_scores(predicted: Tensor, truth: Tensor) -> tuple[float, float]:
    """Micro and macro F1, 2 TP / (2 TP + FP + FN).

    A class without a positive in ``truth`` has no F1 worth the name: it stays out of the macro
    mean, while false alarms for it count in the micro score.

    Args:
        predicted: bool [m, C].
        truth: bool [m, C], with at least one positive.
    """
    hits = (predicted & truth).sum(0).double()
    claims = predicted.sum(0).double()
    positives = truth.sum(0).double()
    micro = 2 * hits.sum() / (claims.sum() + positives.sum())
    occurs = positives > 0
    macro = (2 * hits[occurs] / (claims[occurs] + positives[occurs])).mean()
    return float(micro), float(macro)
