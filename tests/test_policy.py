"""RL objectives: a bandit whose optimum is known, gradients by hand, edge cases of the length rewards."""
import math

import pytest
import torch

from nanokimi.policy import OBJECTIVES, Samples, budget, grpo, k15, k25, length_reward, length_weight, log_partition, mismatch, rest, surrogate, toggle

torch.set_default_dtype(torch.float32)


def samples(new, old, reward, owner=None, group=None, tokens=None, responses=None):
    """Samples of one token a response unless `owner` says otherwise; one group unless `group` does."""
    new, reward = torch.as_tensor(new), torch.as_tensor(reward)
    owner = torch.arange(len(new)) if owner is None else torch.tensor(owner)
    group = torch.zeros(len(reward), dtype=torch.long) if group is None else torch.tensor(group)
    baseline = torch.stack([reward[group == g].mean() for g in group])
    spread = torch.stack([reward[group == g].std(correction=0) for g in group])
    return Samples(new, torch.as_tensor(old).detach(), owner, reward, baseline, spread, tokens or len(new), responses or len(reward))


def gradient(loss, new):
    return torch.autograd.grad(loss, new)[0]


# ---- the bandit: one state, four samples that stand for the reference policy (1/2, 1/4, 1/4) -------------------------------------------

REFERENCE, REWARDS, TAU = torch.tensor([0.5, 0.25, 0.25], dtype=torch.double), torch.tensor([0.2, 1.0, 0.0], dtype=torch.double), 0.7
DRAWN = torch.tensor([0, 0, 1, 2])


def minimise(loss_of):
    logits = REFERENCE.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = loss_of(logits.log_softmax(0))
        loss.backward()
        return loss
    optimizer.step(closure)
    return logits.detach().softmax(0)


def test_the_exact_surrogate_reaches_the_closed_form():
    """k1.5 2.3.2: pi* = pi_ref exp(r / tau) / Z, with the exact Z."""
    target = REFERENCE * (REWARDS / TAU).exp()
    log_z = TAU * target.sum().log()
    found = minimise(lambda logp: surrogate((logp - REFERENCE.log())[DRAWN], REWARDS[DRAWN], log_z, TAU).mean())
    assert torch.allclose(found, target / target.sum(), atol=1e-6)


def test_with_the_mean_as_baseline_the_stationary_point_is_the_root_of_its_equation():
    """pi_ref(a) [r_a - rbar - tau log(pi / pi_ref)] = c pi(a), solved by bisection without any gradient."""
    found = minimise(lambda logp: k15(samples(logp[DRAWN], REFERENCE.log()[DRAWN], REWARDS[DRAWN]), TAU))
    mean = (REFERENCE * REWARDS).sum()

    def bisect(decreasing, low, high):
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if decreasing(middle) > 0 else (low, middle)
        return (low + high) / 2

    def policy(c):
        side = lambda a: lambda p: float(REFERENCE[a] * (REWARDS[a] - mean - TAU * math.log(p / REFERENCE[a])) - c * p)
        return [bisect(side(a), 1e-9, 10.0) for a in range(3)]
    c = bisect(lambda c: sum(policy(c)) - 1, 0.0, 5.0)                      # more c, less probability
    assert torch.allclose(found, torch.tensor(policy(c), dtype=torch.double), atol=1e-4)
    exact = REFERENCE * (REWARDS / TAU).exp()
    assert (found - exact / exact.sum()).abs().max() > 1e-3                 # and it is not the closed form


def test_log_partition():
    """T3: log-mean-exp; the mean for large tau, the maximum for small."""
    rewards = torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.double)
    assert torch.allclose(log_partition(rewards, 1e4), rewards.mean(-1), atol=1e-4)
    assert torch.allclose(log_partition(rewards, 0.3), 0.3 * (rewards / 0.3).exp().mean(-1).log())


# ---- gradients ------------------------------------------------------------------------------------------------------------------------

def test_k15_gradient_is_equation_3():
    """T2: ((r - rbar) - tau log-ratio of the whole response) for each of its tokens, over k."""
    new = torch.randn(6, dtype=torch.double, requires_grad=True)
    old, owner, reward = torch.randn(6, dtype=torch.double), [0, 0, 0, 1, 1, 2], torch.tensor([1.0, 0.0, 0.5], dtype=torch.double)
    ratio = torch.zeros(3, dtype=torch.double).index_add(0, torch.tensor(owner), (new - old).detach())
    expected = -((reward - reward.mean()) - 0.7 * ratio)[torch.tensor(owner)] / 3
    assert torch.allclose(gradient(k15(samples(new, old, reward, owner), 0.7), new), expected)


@pytest.mark.parametrize("log_ratio", [-1.0, 1.0, 0.0, 0.3])
@pytest.mark.parametrize("rewards", [(1.0, 0.0), (0.0, 1.0)])
def test_k25_masks_either_sign_outside_the_window_but_still_pulls_back(log_ratio, rewards):
    """T1. Token 0 belongs to a response with advantage +-0.5; tokens, not responses, are averaged over."""
    new = torch.tensor([log_ratio, 0.0, 0.0], dtype=torch.double, requires_grad=True)
    s = samples(new, torch.zeros(3, dtype=torch.double), torch.tensor(rewards, dtype=torch.double), [0, 1, 1])
    inside = 0.5 < math.exp(log_ratio) < 2.0
    expected = -(inside * math.exp(log_ratio) * (rewards[0] - 0.5) - 2 * 0.1 * log_ratio) / 3
    assert gradient(k25(s, tau=0.1), new)[0].item() == pytest.approx(expected)


def test_k25_squares_token_by_token():
    """T1. Log-ratios that cancel in the sum over a response are pulled back all the same; k1.5's square sees nothing of them."""
    new = torch.tensor([0.3, -0.3, 0.0], dtype=torch.double, requires_grad=True)
    s = samples(new, torch.zeros(3, dtype=torch.double), torch.tensor([0.5, 0.5], dtype=torch.double), [0, 0, 1])
    assert gradient(k25(s, tau=0.1), new).tolist() == pytest.approx([0.02, -0.02, 0.0])
    assert gradient(k15(s, tau=0.1), new).tolist() == pytest.approx([0.0] * 3)


def test_grpo_is_what_the_others_are_not():
    """PPO's clip keeps the gradient on one side; the spread is divided away; every response weighs the same."""
    new = torch.tensor([-1.0, 0.0, 0.0], dtype=torch.double, requires_grad=True)
    s = samples(new, torch.zeros(3, dtype=torch.double), torch.tensor([0.2, 0.0], dtype=torch.double), [0, 1, 1])
    g = gradient(grpo(s), new)
    assert g[0].item() == pytest.approx(-math.exp(-1.0) / 2, rel=2e-3) and g[1].item() == pytest.approx(1 / 4, rel=2e-3)


@pytest.mark.parametrize("log_ratio, reward, moves", [(1.0, 0.2, False), (-1.0, -0.2, False), (1.0, -0.2, True), (-1.0, 0.2, True)])
def test_grpo_clips_what_has_gone_far_enough(log_ratio, reward, moves):
    """Up where the advantage is positive, down where it is negative; the way back stays open."""
    new = torch.tensor([log_ratio, 0.0], dtype=torch.double, requires_grad=True)
    s = samples(new, torch.zeros(2, dtype=torch.double), torch.tensor([reward, 0.0], dtype=torch.double), [0, 1])
    assert (gradient(grpo(s), new)[0].item() != 0) == moves


def test_rest_learns_from_successes_only():
    new = torch.zeros(3, requires_grad=True)
    assert gradient(rest(samples(new, torch.zeros(3), torch.tensor([1.0, 0.0]), [0, 0, 1])), new).tolist() == pytest.approx([-1 / 3, -1 / 3, 0])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up_and_equal_rewards_teach_nothing(name):
    torch.manual_seed(0)
    old, owner, group = torch.randn(8, dtype=torch.double), [0, 0, 1, 2, 2, 2, 3, 3], [0, 0, 1, 1]
    reward = torch.tensor([1.0, 0.0, 0.3, 0.9], dtype=torch.double)
    new = (old + 0.1 * torch.randn(8, dtype=torch.double)).requires_grad_()
    whole = OBJECTIVES[name](samples(new, old, reward, owner, group))
    first = samples(new[:3], old[:3], reward[:2], owner[:3], group[:2], tokens=8, responses=4)
    second = samples(new[3:], old[3:], reward[2:], [i - 2 for i in owner[3:]], group[2:], tokens=8, responses=4)
    assert torch.allclose(whole, OBJECTIVES[name](first) + OBJECTIVES[name](second))
    start = old.clone().requires_grad_()                                    # at the policy that sampled, with nothing to choose between
    assert gradient(OBJECTIVES[name](samples(start, old, torch.ones(4, dtype=torch.double), owner, group)), start).abs().max() < 1e-12


# ---- lengths ----------------------------------------------------------------------------------------------------------------------------

def test_length_reward():
    """T4: range +-0.5, over all responses, never positive for a wrong one, 0 where all are equally long."""
    assert length_reward([10, 20, 30], [True, True, True]) == [0.5, 0.0, -0.5]
    assert length_reward([10, 20, 30], [False, True, False]) == [0.0, 0.0, -0.5]
    assert length_reward([7, 7], [True, False]) == [0.0, 0.0]
    assert [length_weight(i, 3, 0.2) for i in range(5)] == [0.0, 0.0, 0.0, 0.2, 0.2]


def test_toggle():
    """T5: multiplicative; phase 0 first; only for groups that are right often enough; frozen budget, none without a success."""
    assert budget([10, 20, 30, 99], [True, True, True, False], 50) == 20.0 and budget([5], [False], 50) is None
    rewards, lengths = [1.0, 1.0, 0.0], [10, 30, 5]
    assert toggle(rewards, lengths, 20.0, 0, 5, 0.5) == [1.0, 0.0, 0.0] == toggle(rewards, lengths, 20.0, 14, 5, 0.5)
    assert toggle(rewards, lengths, 20.0, 5, 5, 0.5) == rewards                 # phase 1
    assert toggle(rewards, lengths, 20.0, 0, 5, 0.9) == rewards == toggle(rewards, lengths, None, 0, 5, 0.5)
    assert toggle([1.0, 1.0], [20, 21], 20.0, 0, 5, 1.0) == [1.0, 0.0]          # the budget itself and a mean of lambda itself


def test_mismatch_by_hand():
    got = mismatch(torch.tensor([0.0, math.log(3), -math.log(4), 0.1]))
    assert got["mismatch_max"] == pytest.approx(math.log(4)) and got["mismatch_outside"] == 0.5
    assert got["mismatch"] == pytest.approx((math.log(12) + 0.1) / 4)
    assert got["mismatch_kl"] == pytest.approx((2 - math.log(3) + math.log(4) - 0.75 + math.exp(0.1) - 1.1) / 4)
    assert set(mismatch(torch.zeros(0)).values()) == {0.0}


def test_the_estimate_of_kl_is_the_kl():
    """Averaged over the sampler's distribution, mean(ratio - 1 - log ratio) is KL(sampler || learner)."""
    sampler, learner = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.25, 0.5])
    drawn = torch.repeat_interleave(torch.arange(3), torch.tensor([50, 30, 20]))
    want = torch.nn.functional.kl_div(learner.log(), sampler, reduction="sum")
    assert mismatch((learner / sampler).log()[drawn])["mismatch_kl"] == pytest.approx(want.item(), rel=1e-5)
