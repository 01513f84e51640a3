"""Exercise 9 against Eq. 3 by autograd, numbers by hand, and limits of tau log Z."""
import math

import pytest
import torch

from ex09_k15_surrogate import k15_loss, tau_log_z

OWNER = torch.tensor([0, 0, 0, 1, 2, 2])                        # three responses of 3, 1 and 2 tokens
REWARD = torch.tensor([1.0, 0.0, 0.25], dtype=torch.double)


def logprobs(seed=0):
    torch.manual_seed(seed)
    old = -torch.rand(6, dtype=torch.double)
    return (old + 0.3 * torch.randn(6, dtype=torch.double)).requires_grad_(), old


def test_log_z_by_the_definition():
    want = 0.7 * math.log(sum(math.exp(r / 0.7) for r in REWARD.tolist()) / 3)
    assert tau_log_z(REWARD, 0.7).item() == pytest.approx(want)


def test_log_z_between_mean_and_maximum():
    assert tau_log_z(REWARD, 1e3).item() == pytest.approx(REWARD.mean().item(), abs=1e-3)
    assert tau_log_z(REWARD, 1e-4).item() == pytest.approx(1.0, abs=1e-3)      # overflows if done naively
    assert tau_log_z(torch.full((5,), 0.3), 0.5).item() == pytest.approx(0.3)


def test_loss_by_hand():
    new, old = logprobs()
    ratio = [(new - old)[OWNER == j].sum().item() for j in range(3)]
    errors = [r - 1.25 / 3 - 0.5 * x for r, x in zip(REWARD.tolist(), ratio)]
    assert k15_loss(new, old, OWNER, REWARD, 0.5).item() == pytest.approx(sum(e * e for e in errors) / 3 / (2 * 0.5))


@pytest.mark.parametrize("tau", [0.1, 2.0])
def test_gradient_is_equation_3(tau):
    """(1/k) sum_j [grad log pi(y_j) (r_j - mean) - tau/2 grad (log pi / pi_i)^2], the sign turned."""
    new, old = logprobs()
    got, = torch.autograd.grad(k15_loss(new, old, OWNER, REWARD, tau), new)
    objective = 0
    for j in range(3):
        mine = OWNER == j
        objective = objective + new[mine].sum() * (REWARD[j] - REWARD.mean()) - tau / 2 * (new[mine].sum() - old[mine].sum()) ** 2
    torch.testing.assert_close(got, -torch.autograd.grad(objective / 3, new)[0])


def test_at_the_first_step_only_advantages_push_and_failures_count():
    old = logprobs()[1]
    new = old.clone().requires_grad_()
    k15_loss(new, old, OWNER, REWARD, 0.5).backward()
    torch.testing.assert_close(new.grad, -(REWARD - REWARD.mean())[OWNER] / 3)
    assert new.grad[3] > 0                                                      # the wrong one becomes less likely


def test_equal_rewards_hold_the_policy_where_it_was():
    new, old = logprobs()
    k15_loss(new, old, OWNER, torch.ones(3, dtype=torch.double), 0.5).backward()
    assert torch.equal(new.grad[3].sign(), (new - old)[3].sign())


def test_tokens_of_a_response_share_one_log_ratio():
    """+0.4 and -0.4 in one response cancel; with a square per token they would not."""
    old = torch.zeros(2, dtype=torch.double)
    new = torch.tensor([0.4, -0.4], dtype=torch.double, requires_grad=True)
    assert k15_loss(new, old, torch.tensor([0, 0]), torch.ones(1, dtype=torch.double), 0.5).item() == pytest.approx(0)
