import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from consumers.probe import f1_scores, fit, linear_probe


@pytest.fixture(autouse=True)
def one_thread():
    # On matrices this small, threads only wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def data(n: int, noise: float, seed: int = 0, classes: int = 4):
    """Features whose first columns carry the labels, as deep in noise as asked."""
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, classes, generator=generator) < 0.3).float()
    x = torch.randn(n, 16, generator=generator)
    x[:, :classes] = y * 3 + noise * torch.randn(n, classes, generator=generator)
    return x * 50 + 7, y  # neither centred nor scaled


def test_readable_labels_are_read():
    result = linear_probe(*data(200, 0.1), *data(100, 0.1, seed=1))
    assert result.micro_f1 > 0.98
    assert result.macro_f1 > 0.98


def test_labels_that_are_not_in_the_features_score_at_chance():
    x, y = data(400, 0.1)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    result = linear_probe(x, y[order], *data(2000, 0.1, seed=2), weight_decay=10.0)
    # Knowing frequencies only, the best one can do is to name every class: 2p / (1 + p) = 0.46.
    assert result.micro_f1 < 0.5
    assert result.chance_micro_f1 == pytest.approx(0.3, abs=0.03)


def test_chance_is_the_expected_f1():
    y = torch.zeros(4000, 2)
    y[:1000, 0] = 1  # a quarter
    y[:2000, 1] = 1  # half
    x = torch.zeros(4000, 3)
    result = linear_probe(x, y, x, y)
    # With p drawn and p true: F1 -> 2 p p / (p + p) = p for a class; pooled: sum p^2 / sum p.
    assert result.chance_macro_f1 == pytest.approx((0.25 + 0.5) / 2, abs=0.01)
    assert result.chance_micro_f1 == pytest.approx((0.25**2 + 0.5**2) / 0.75, abs=0.01)


def test_f1_is_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(60, 6, generator=generator) < 0.3
    predicted = torch.rand(60, 6, generator=generator) < 0.4
    truth[:, 5] = False
    micro, macro = f1_scores(predicted, truth)
    assert micro == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert macro == pytest.approx(f1_score(truth, predicted, average="macro", labels=range(5)))


def test_the_optimum_is_scikit_learns():
    x, y = data(120, 2.0)
    x, y = ((x - x.mean(0)) / x.std(0)).double(), y.double()
    weight, bias = fit(x, y, weight_decay=0.05, steps=200)
    for c in range(y.shape[1]):
        # Its objective is C * (sum of losses) + |w|^2 / 2; ours is (mean loss) + decay * |w|^2 / 2.
        model = LogisticRegression(C=1 / (0.05 * len(x)), tol=1e-8, max_iter=1000)
        model.fit(x.numpy(), y[:, c].numpy())
        assert weight[:, c].numpy() == pytest.approx(model.coef_[0], abs=1e-3)
        assert float(bias[c]) == pytest.approx(model.intercept_[0], abs=1e-3)


def test_same_data_same_result():
    train, test = data(50, 2.0), data(50, 2.0, seed=1)
    first = linear_probe(*train, *test)
    assert linear_probe(*train, *test) == first
    other = linear_probe(*train, *test, seed=9)
    assert (other.micro_f1, other.macro_f1) == (first.micro_f1, first.macro_f1)
    assert other.chance_micro_f1 != first.chance_micro_f1


def test_classes_missing_from_training_or_test_do_no_harm():
    x, y = data(100, 0.1)
    test_x, test_y = data(100, 0.1, seed=1)
    y, test_y = (torch.cat([t, torch.zeros(100, 2)], 1) for t in (y, test_y))
    test_y[:, 0] = 0  # class 0 occurs in training only
    result = linear_probe(x, y, test_x, test_y)
    assert result.macro_f1 > 0.98
    assert result.micro_f1 < 0.9  # its false alarms count here


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, u, v: (x[:-1], y, u, v), "train: features"),
        (lambda x, y, u, v: (x, y, u[:0], v[:0]), "test: features"),
        (lambda x, y, u, v: (x, y, u[:, :-1], v), "differ in their columns"),
        (lambda x, y, u, v: (x, y, u, v[:, :-1]), "differ in their columns"),
        (lambda x, y, u, v: (x, y, u * float("nan"), v), "test: features are not finite"),
        (lambda x, y, u, v: (x, y, u, v * 0), "nothing to score"),
    ],
)
def test_wrong_input(change, message):
    with pytest.raises(ValueError, match=message):
        linear_probe(*change(*data(20, 1.0), *data(10, 1.0)))
