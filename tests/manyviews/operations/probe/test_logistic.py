import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from manyviews.operations.probe.logistic import DECAYS, LinearProbe, Part, fit, fit_probe, loss_of
from manyviews.operations.probe.scores import Scores, score


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    # On matrices this small, several threads are slower than one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data(n: int, noise: float, seed: int = 0, classes: int = 4) -> Part:
    """Features whose first columns contain the labels, with noise of the given strength."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, classes, generator=generator) < 0.3).float()
    x = torch.randn(n, 16, generator=generator)
    x[:, :classes] = y * 3 + noise * torch.randn(n, classes, generator=generator)
    return Part(x * 50 + 7, y)  # neither centred nor scaled


def start_of(part: Part) -> tuple[torch.Tensor, torch.Tensor]:
    return part.x.new_zeros(part.x.shape[1], part.y.shape[1]), part.x.new_zeros(part.y.shape[1])


def scores(probe: LinearProbe, test: Part) -> Scores:
    return score(probe.predict(test.x).numpy(), test.y.numpy() > 0.5, 0.5)


def test_labels_in_the_features_are_predicted() -> None:
    found = scores(fit_probe(data(200, 0.1), data(60, 0.1, 1)), data(100, 0.1, 2))
    assert found.micro_f1 > 0.98
    assert found.macro_f1 > 0.98
    assert found.mean_ap > 0.98


def test_labels_that_are_not_in_the_features_are_not_predicted() -> None:
    train, dev = data(200, 0.1), data(400, 0.1, 1)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    probe = fit_probe(Part(train.x, train.y[order]), dev)
    # The best fit on dev is then close to the class frequencies, whose loss is the entropy.
    assert probe.weight_decay >= 1
    frequency = train.y.double().mean(0)
    entropy = -(frequency * frequency.log() + (1 - frequency) * (1 - frequency).log()).sum()
    assert probe.dev_loss == pytest.approx(float(entropy), rel=0.1)


def test_the_optimum_equals_scikit_learn() -> None:
    part = data(120, 2.0)
    x, y = ((part.x - part.x.mean(0)) / part.x.std(0)).double(), part.y.double()
    part = Part(x, y)
    weight, bias, loss = fit(part, 0.05, start_of(part))
    assert math.isnan(loss)
    for c in range(y.shape[1]):
        # scikit-learn minimises C * (sum of losses) + |w|^2 / 2; ours is (mean loss) plus
        # decay * |w|^2 / 2.
        model = LogisticRegression(C=1 / (0.05 * len(x)), tol=1e-8, max_iter=1000)
        model.fit(x.numpy(), y[:, c].numpy())
        assert weight[:, c].numpy() == pytest.approx(model.coef_[0], abs=1e-3)
        assert float(bias[c]) == pytest.approx(model.intercept_[0], abs=1e-3)


def test_the_decay_with_the_lowest_dev_loss_is_chosen() -> None:
    train, dev = data(60, 2.0), data(500, 2.0, 1)
    alone = {decay: fit_probe(train, dev, (decay,)).dev_loss for decay in DECAYS}
    probe = fit_probe(train, dev)
    assert probe.weight_decay not in (DECAYS[0], DECAYS[-1])
    assert probe.dev_loss <= min(alone.values()) + 1e-3
    assert probe.dev_loss == pytest.approx(alone[probe.weight_decay], abs=5e-3)


def test_training_stops_when_the_dev_loss_rises() -> None:
    train, dev = data(40, 3.0), data(500, 3.0, 1)
    probe = fit_probe(train, dev, (1e-6,))
    standardized = Part((train.x.double() - probe.center) / probe.scale, train.y.double())
    held_out = Part((dev.x.double() - probe.center) / probe.scale, dev.y.double())
    weight, bias, _ = fit(standardized, 1e-6, start_of(standardized))
    assert probe.dev_loss < loss_of(held_out, weight, bias) / 2
    assert probe.dev_loss == loss_of(held_out, probe.weight, probe.bias)


def test_standardising_equals_numpy_with_offsets_and_constants() -> None:
    train = data(100, 0.1)
    x = torch.cat([train.x * 1e-3 + 1e4, torch.full((100, 1), 5.0)], 1)
    probe = fit_probe(Part(x, train.y), Part(x, train.y))
    wide = x.numpy().astype(np.float64)
    np.testing.assert_allclose(probe.center.numpy(), wide.mean(0))
    np.testing.assert_allclose(probe.scale.numpy()[:-1], wide.std(0)[:-1], rtol=1e-4)
    assert scores(probe, Part(x, train.y)).micro_f1 > 0.98


def test_fitting_is_deterministic() -> None:
    train, dev = data(50, 2.0), data(50, 2.0, seed=1)
    first, second = fit_probe(train, dev), fit_probe(train, dev)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_classes_missing_from_training_or_test_are_handled() -> None:
    train, dev, test = data(100, 0.1), data(50, 0.1, 1), data(100, 0.1, 2)
    train, dev, test = (
        Part(p.x, torch.cat([p.y, torch.zeros(len(p.y), 2)], 1)) for p in (train, dev, test)
    )
    test.y[:, 0] = 0  # class 0 occurs in training only
    found = scores(fit_probe(train, dev), test)
    assert found.macro_f1 > 0.98
    assert found.micro_f1 < 0.9  # its false positives count here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, d: (Part(t.x[:-1], t.y), d), "train: features"),
        (lambda t, d: (t, Part(d.x[:0], d.y[:0])), "dev: features"),
        (lambda t, d: (t, Part(d.x[:, :-1], d.y)), "dev: the columns differ"),
        (lambda t, d: (t, Part(d.x, d.y[:, :-1])), "dev: the columns differ"),
        (lambda t, d: (t, Part(d.x * float("nan"), d.y)), "dev: features are not finite"),
    ],
)
def test_wrong_inputs_are_refused(
    change: Callable[[Part, Part], tuple[Part, Part]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_probe(*change(data(20, 1.0), data(10, 1.0)))


def test_a_dev_set_that_contradicts_the_training_set() -> None:
    train, dev = data(100, 0.1), data(50, 0.1, 1)
    probe = fit_probe(train, Part(dev.x, 1 - dev.y))
    assert probe.weight_decay == DECAYS[0]
    assert math.isfinite(probe.dev_loss)
