"""Exercise 10: gradients by hand, inside and outside of the window, and nanokimi's own objective."""
import math

import pytest
import torch

from ex10_k25_objective import advantage, k25_loss
from nanokimi.policy import Samples, k25

TAU, WINDOW = 0.05, (0.5, 2.0)


def gradient(log_ratio, advantages, owner=None, tokens=None, tau=TAU):
    """d loss / d new for tokens with these log-ratios; one token a response unless `owner` says otherwise."""
    old = torch.full((len(log_ratio),), -1.0, dtype=torch.double)
    new = (old + torch.tensor(log_ratio, dtype=torch.double)).requires_grad_()
    owner = torch.arange(len(new)) if owner is None else torch.tensor(owner)
    k25_loss(new, old, owner, torch.tensor(advantages, dtype=torch.double), tokens or len(new), tau, WINDOW).backward()
    return new.grad.tolist()


def test_advantages_are_not_divided_by_their_spread():
    torch.testing.assert_close(advantage(torch.tensor([1.0, 0.0, 0.0, 0.0])), torch.tensor([0.75, -0.25, -0.25, -0.25]))
    torch.testing.assert_close(advantage(torch.tensor([10.0, 0.0])), torch.tensor([5.0, -5.0]))
    assert advantage(torch.tensor([0.5, 0.5])).tolist() == [0, 0]


@pytest.mark.parametrize("a", [1.0, -1.0])
@pytest.mark.parametrize("x", [-0.5, 0.0, 0.5])
def test_inside_the_window(x, a):
    assert gradient([x], [a]) == pytest.approx([-(math.exp(x) * a - 2 * TAU * x)])


@pytest.mark.parametrize("a", [1.0, -1.0])
@pytest.mark.parametrize("x", [-1.0, 1.0])
def test_outside_only_the_squared_log_ratio_pulls_whatever_the_sign(x, a):
    assert gradient([x], [a]) == pytest.approx([2 * TAU * x])
    assert gradient([x], [a], tau=0.0) == pytest.approx([0.0])


def test_at_the_start_it_is_the_plain_policy_gradient():
    assert gradient([0.0, 0.0], [0.5, -0.5]) == pytest.approx([-0.25, 0.25])


def test_every_token_weighs_the_same_in_long_and_short_responses():
    got = gradient([0.0] * 5, [1.0, 1.0], owner=[0, 1, 1, 1, 1])
    assert got == pytest.approx([-0.2] * 5)


def test_micro_batches_add_up():
    whole = gradient([0.1, -0.2, 0.9, 0.3], [0.5, -0.5], owner=[0, 0, 1, 1])
    parts = gradient([0.1, -0.2], [0.5], owner=[0, 0], tokens=4) + gradient([0.9, 0.3], [-0.5], owner=[0, 0], tokens=4)
    assert parts == pytest.approx(whole)


def test_the_log_ratio_is_squared_per_token():
    assert gradient([0.4, -0.4], [0.0], owner=[0, 0]) == pytest.approx([TAU * 0.4, -TAU * 0.4])


def test_it_is_nanokimis():
    torch.manual_seed(0)
    new, old, reward, owner = torch.randn(20), torch.randn(20), torch.rand(4), torch.randint(0, 4, (20,))
    samples = Samples(new, old, owner, reward, reward.mean().expand(4), reward, 50, 4)
    torch.testing.assert_close(k25_loss(new, old, owner, advantage(reward), 50, TAU, WINDOW), k25(samples, TAU, WINDOW))
