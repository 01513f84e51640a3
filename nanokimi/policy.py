"""The objectives of reinforcement learning, one function per equation, and what they are made of: advantages, length penalty, Toggle.

Every objective is a loss to minimise, summed over a micro-batch and divided by counts of the FULL batch, so that micro-batches add up.
No value network, no process reward, no reference to a frozen older model (k1.5 2.3.2): the only other policy is the one that sampled.
Left out: generative reward models, PARL.
"""
from dataclasses import dataclass

import torch


@dataclass
class Samples:
    """The sampled tokens of a micro-batch of responses; forced tokens (tool output) are not among them.

    new, old: (N,) log pi_theta with gradient, log-probabilities of the policy that sampled. owner: (N,) the response a token belongs to.
    reward, baseline, spread: (R,) by response: its reward, then the mean and the standard deviation of its group's rewards.
    tokens, responses: how many of each the FULL batch has.
    """
    new: torch.Tensor
    old: torch.Tensor
    owner: torch.Tensor
    reward: torch.Tensor
    baseline: torch.Tensor
    spread: torch.Tensor
    tokens: int
    responses: int

    @property
    def advantage(self) -> torch.Tensor:
        """(R,) r - mean of the group: nothing is divided by the spread (K2.5 Eq. 1, k1.5 Eq. 3)."""
        return self.reward - self.baseline

    def by_response(self, values: torch.Tensor) -> torch.Tensor:
        """Sums of a value per token (N,) over each response: (R,)."""
        return torch.zeros_like(self.reward).index_add(0, self.owner, values)


WINDOW = (0.5, 2.0)             # of the ratio, K2.5 Eq. 1; not disclosed: ours


def mismatch(log_ratio: torch.Tensor) -> dict:
    """How far the policy that learns is from the one that sampled, from log(pi_learner / pi_sampler) (N,) of the sampled tokens: mean and
    largest size, share of tokens outside of WINDOW, and an estimate of KL(sampler || learner), mean(ratio - 1 - log ratio), which
    is never negative. All 0 for no tokens."""
    if not len(log_ratio):
        return {"mismatch": 0.0, "mismatch_max": 0.0, "mismatch_outside": 0.0, "mismatch_kl": 0.0}
    ratio = log_ratio.exp()
    outside = (ratio < WINDOW[0]) | (ratio > WINDOW[1])
    return {"mismatch": log_ratio.abs().mean().item(), "mismatch_max": log_ratio.abs().max().item(),
            "mismatch_outside": outside.float().mean().item(), "mismatch_kl": (ratio - 1 - log_ratio).mean().item()}


# ---- objectives ----------------------------------------------------------------------------------------------------------------------

def k25(s: Samples, tau: float = 0.05, window: tuple[float, float] = WINDOW) -> torch.Tensor:
    """K2.5 Eq. 1, its sign turned. Outside of the window a token has no policy gradient, whatever the sign of its advantage (this is not
    PPO's one-sided clip), but the squared log-ratio keeps pulling it back. tau and the window are not disclosed: ours."""
    log_ratio = s.new - s.old
    gain = log_ratio.exp().clamp(*window) * s.advantage[s.owner]
    return -(gain - tau * log_ratio.square()).sum() / s.tokens           # N: over all problems of the step (the paper writes it for one)


def k15(s: Samples, tau: float = 0.5) -> torch.Tensor:
    """k1.5's surrogate of online mirror descent with tau log Z ~ the mean reward, over 2 tau: its gradient is then k1.5 Eq. 3. The
    log-ratio is that of the whole response, not normalised by its length. tau is not disclosed: ours."""
    log_ratio = s.by_response(s.new - s.old)                                      # (R,)
    return (s.advantage - tau * log_ratio).square().sum() / (2 * tau * s.responses)


def rest(s: Samples) -> torch.Tensor:
    """ReST (arXiv 2308.08998), what k1.5 compares with: likelihood of the best responses, which with rewards of 0 and 1 are those above their group's mean (with
    partial credit these are a few more). It never learns from failures."""
    good = (s.advantage > 0).float()
    return -(good[s.owner] * s.new).sum() / s.tokens


def grpo(s: Samples, epsilon: float = 0.2) -> torch.Tensor:
    """GRPO (arXiv 2402.03300) as it is taught: advantages over their spread, PPO's one-sided clip, a mean per response first. Its KL term to a frozen model
    is left out, as in most present uses."""
    ratio = (s.new - s.old).exp()
    advantage = (s.advantage / (s.spread + 1e-4))[s.owner]
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - epsilon, 1 + epsilon) * advantage)
    lengths = s.by_response(torch.ones_like(s.new)).clamp(min=1)
    return -(s.by_response(gain) / lengths).sum() / s.responses


OBJECTIVES = {"k25": k25, "k15": k15, "rest": rest, "grpo": grpo}


def log_partition(rewards: torch.Tensor, tau: float) -> torch.Tensor:
    """tau log Z of k1.5 Eq. 2 from the rewards (..., k) of a group: tau log mean exp(r / tau) -> (...). For large tau it is the mean."""
    return tau * ((rewards / tau).logsumexp(-1) - torch.tensor(float(rewards.shape[-1])).log())


def surrogate(log_ratio: torch.Tensor, reward: torch.Tensor, log_z: torch.Tensor, tau: float) -> torch.Tensor:
    """k1.5 2.3.2 as printed: (r - tau log Z - tau log(pi / pi_i))^2, elementwise. Its minimiser is pi_i exp(r / tau) / Z."""
    return (reward - log_z - tau * log_ratio).square()


def dpo(chosen: torch.Tensor, rejected: torch.Tensor, ref_chosen: torch.Tensor, ref_rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """DPO's loss (arXiv 2305.18290) per pair (P,) from log-probabilities of whole responses, of the model that learns and of the one it began as."""
    return -torch.nn.functional.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


# ---- rewards that look at lengths --------------------------------------------------------------------------------------------------------

def length_reward(lengths: list[int], correct: list[bool]) -> list[float]:
    """k1.5 2.3.3 for the k responses of a problem: lambda = 0.5 - (len - min) / (max - min) over ALL of them, +-0.5; a wrong response
    never earns any. All 0 where all are equally long."""
    low, high = min(lengths), max(lengths)
    if low == high:
        return [0.0] * len(lengths)
    scores = [0.5 - (length - low) / (high - low) for length in lengths]
    return [score if right else min(0.0, score) for score, right in zip(scores, correct)]


def length_weight(iteration: int, warmup: int, weight: float) -> float:
    """k1.5 2.3.3: no penalty first, then a constant one. A step, not a ramp."""
    return 0.0 if iteration < warmup else weight


def budget(lengths: list[int], correct: list[bool], percentile: float) -> float | None:
    """K2.5 Eq. 2 (Toggle): a percentile of the lengths of correct responses, taken once before training. None where nothing was correct:
    such a problem has no budget (the paper does not say; ours)."""
    right = torch.tensor([float(length) for length, good in zip(lengths, correct) if good])
    return torch.quantile(right, percentile / 100).item() if len(right) else None


def toggle(rewards: list[float], lengths: list[int], limit: float | None, iteration: int, phase: int, threshold: float) -> list[float]:
    """K2.5's Toggle: in every other phase of `phase` iterations, beginning with the first, a response longer than its problem's budget
    earns nothing, provided that the group is right often enough. In between nothing is limited, so that length stays useful."""
    limited = iteration // phase % 2 == 0 and limit is not None and sum(rewards) / len(rewards) >= threshold
    return [0.0 if limited and length > limit else reward for reward, length in zip(rewards, lengths)]
