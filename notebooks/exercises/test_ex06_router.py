"""Exercise 6 against nanokimi's router, loads counted by hand, and what a bias must not do."""
import pytest
import torch

from ex06_router import route, update_bias
from nanokimi.config import LanguageConfig
from nanokimi.language import Router

N, E, D, K = 40, 8, 6, 3


def by_expert(chosen, weights):
    """(N, E) with the weights at their experts: the order of the k is free."""
    return torch.zeros(len(chosen), E, dtype=weights.dtype).scatter(1, chosen, weights)


def inputs():
    torch.manual_seed(0)
    return torch.randn(N, D), torch.randn(E, D), 0.3 * torch.randn(E)


def test_it_is_nanokimis():
    x, weight, bias = inputs()
    router = Router(LanguageConfig(dim=D, experts=E, top_k=K, routed_scaling=1.7))
    router.weight.data, router.e_score_correction_bias = weight, bias
    _, chosen, weights = router(x)
    torch.testing.assert_close(by_expert(*route(x, weight, bias, K, 1.7)), by_expert(chosen, weights.detach()))


def test_weights_sum_to_the_scaling():
    x, weight, bias = inputs()
    chosen, weights = route(x, weight, bias, K, 2.5)
    assert chosen.shape == weights.shape == (N, K)
    torch.testing.assert_close(weights.sum(1), torch.full((N,), 2.5))


def test_weights_are_in_proportion_to_sigmoids():
    chosen, weights = route(torch.ones(1, 1), torch.tensor([[2.0], [0.0], [-1.0]]), torch.zeros(3), 2, 1.0)
    gate = dict(zip(chosen[0].tolist(), weights[0].tolist()))
    high, low = 1 / (1 + 2.718281828 ** -2), 0.5
    assert gate == pytest.approx({0: high / (high + low), 1: low / (high + low)})


def test_a_common_bias_changes_nothing():
    x, weight, bias = inputs()
    torch.testing.assert_close(by_expert(*route(x, weight, bias + 7, K, 1.0)), by_expert(*route(x, weight, bias, K, 1.0)))


def test_the_bias_is_added_to_the_score_and_not_to_the_logit():
    """Scores 0.98, 0.95, 0.5: a bias of 0.4 is not enough for the third one; as a part of its logit 4.0 would be."""
    weight = torch.tensor([[4.0], [3.0], [0.0]])
    assert set(route(torch.ones(1, 1), weight, torch.tensor([0.0, 0.0, 0.4]), 2, 1.0)[0][0].tolist()) == {0, 1}
    assert set(route(torch.ones(1, 1), weight, torch.tensor([0.0, 0.0, 0.46]), 2, 1.0)[0][0].tolist()) == {0, 2}


def test_the_bias_brings_an_expert_in_but_not_up():
    x, weight, _ = inputs()
    chosen, weights = route(x, weight, torch.eye(E)[5] * 100, K, 1.0)
    assert (chosen == 5).any(1).all()
    scores = (x @ weight.T).sigmoid().gather(1, chosen)
    torch.testing.assert_close(weights, scores / scores.sum(1, keepdim=True))


def test_no_gradient_reaches_the_bias_but_one_reaches_the_router():
    x, weight, bias = inputs()
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    route(x, weight, bias, K, 1.0)[1].square().sum().backward()
    assert weight.grad.abs().sum() > 0 and (bias.grad is None or bias.grad.abs().max() < 1e-5)


def test_update():
    new = update_bias(torch.tensor([0.1, 0.0, 0.0, -0.1]), torch.tensor([6, 2, 2, 2]), 0.01)
    torch.testing.assert_close(new, torch.tensor([0.085, 0.005, 0.005, -0.095]))


def test_update_looks_at_signs_only_and_an_even_load_is_left_alone():
    torch.testing.assert_close(update_bias(torch.zeros(4), torch.tensor([9, 1, 5, 5]), 1.0), torch.tensor([-1.0, 1, 0, 0]))
    torch.testing.assert_close(update_bias(torch.zeros(3), torch.tensor([4, 4, 4]), 1.0), torch.zeros(3))


def test_the_sum_of_the_biases_stays():
    bias = update_bias(torch.randn(E), torch.tensor([100, 1, 1, 1, 1, 1, 1, 1]), 0.5)
    given = bias.clone()
    torch.testing.assert_close(update_bias(bias, torch.tensor([90, 2, 3, 1, 1, 1, 1, 1]), 0.5).sum(), given.sum())
    assert torch.equal(bias, given), "the bias given stays as it is"


def test_it_balances():
    """All tokens alike but for noise, so that three experts would take everything."""
    torch.manual_seed(0)
    x, weight, bias = 1 + 0.3 * torch.randn(400, D), torch.randn(E, D), torch.zeros(E)
    share = lambda: torch.bincount(route(x, weight, bias, K, 1.0)[0].flatten(), minlength=E) / (400 * K / E)
    before = share().max()
    for _ in range(300):
        bias = update_bias(bias, share(), 0.01)
    assert before > 2 and share().max() < 1.4, f"the busiest expert had {before:.2f} times its share and now has {share().max():.2f}"
