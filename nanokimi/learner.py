"""Optimizer steps on responses: reinforcement, imitation, preference. What they share is how a step ends.

Training batches are made from finished groups (rollout.micro_batches); the objectives are policy.OBJECTIVES.
"""
from dataclasses import dataclass

import numpy as np
import torch

from . import data, rollout, team
from .errors import BadInput
from .kernels import faster_dtype
from .model import NanoKimi
from .muon import AdamW, MuonClip, qk_clip
from .policy import OBJECTIVES, Samples, dpo, mismatch
from .tokenizer import Rendered, Tokenizer

CLIP_GRAD, QK_CLIP = 1.0, 30.0
MICRO_TOKENS = 8192             # of a micro-batch


@dataclass
class Learner:
    """A model, its optimizer, and how to learn from responses that were sampled at `temperature`."""
    model: NanoKimi
    tokenizer: Tokenizer
    optimizer: MuonClip | AdamW
    objective: str = "k25"
    temperature: float = 1.0
    inner: int = 1                  # passes over the responses of an iteration (k1.5 takes several)
    step_problems: int = 64         # problems an optimizer step
    replay: float = 0.0             # weight of the cold start's text in every step (PTX)
    seed: int = 0

    @property
    def device(self):
        return self.model.language.head.weight.device

    # ---------------------------------------------------------------- reinforcement
    def update(self, groups: list[rollout.Group], rewards: list[list[float]], iteration: int) -> dict:
        """Optimizer steps on the groups whose rewards differ; returns counts and log-ratios; the mismatch is that of the first step, before
        anything has changed. MuonClip's step is equally large however small the gradient, so where there is nothing to learn there must be
        no step."""
        learn = [(group, values) for group, values in zip(groups, rewards) if rollout.differ(values)]
        stats = {"zero_variance": 1 - len(learn) / max(1, len(groups)), "steps": 0, "tokens": 0, "log_ratio": 0.0, "log_ratio_max": 0.0, "first": [torch.zeros(0)]}
        if self.objective == "k15":
            self.optimizer.state.clear()                                 # every iteration is a new problem (k1.5 2.3.2)
        for _ in range(self.inner):
            for start in range(0, len(learn), self.step_problems):
                self._accumulate(learn[start:start + self.step_problems], stats)
                if self.replay and team.rank() == 0:
                    self._rehearse(1000 * iteration + stats["steps"])
                self.step()
                stats["steps"] += 1
        stats = everyones(stats)
        return stats | mismatch(torch.cat(stats.pop("first"))) | self.optimizer.measured()

    def _accumulate(self, learn: list[tuple], stats: dict) -> None:
        """Adds the gradients of this process's share of one step, micro-batch by micro-batch."""
        mine = team.share(learn)
        batches = rollout.micro_batches([group for group, _ in mine], [values for _, values in mine], self.tokenizer.patch, self.tokenizer.pad,
                                        MICRO_TOKENS)
        tokens, responses = team.total((sum(len(b.old) for b in batches), sum(len(b.reward) for b in batches)))
        for training in batches:
            new, _ = self.model.target_logprobs(training.batch.to(self.device), self.temperature)
            arrays = (training.old, training.owner, training.reward, training.baseline, training.spread)
            old, *rest = (torch.from_numpy(array).to(self.device) for array in arrays)
            OBJECTIVES[self.objective](Samples(new, old, *rest, tokens, responses)).backward()
            stats["tokens"] += len(new)
            ratio = (new - old).detach()
            stats["log_ratio"] += ratio.abs().sum().item()
            stats["log_ratio_max"] = max(stats["log_ratio_max"], ratio.abs().max().item())
            if stats["steps"] == 0:
                stats["first"].append(ratio.cpu())

    def _rehearse(self, number: int, documents: int = 16, length: int = 384) -> None:
        """Adds the gradients of supervised learning on a few of the cold start's chats and documents, by weight (K2's RL mixes in such a
        PTX loss; its weight is not disclosed)."""
        batches = data.Batches("sft", self.tokenizer, self.model.config.vision, self.seed + 10 ** 6, documents * data.SHARDS, length, steps=1)
        batch, _ = batches.shard(number, 0)
        loss, _ = self.model.loss(batch.to(self.device))
        (self.replay * loss).backward()

    # ---------------------------------------------------------------- imitation and preference
    def imitate(self, documents: list[Rendered]) -> float:
        """One step of supervised learning on these documents; returns the loss."""
        mine = team.share(documents)
        batch = data.packed(mine, self.tokenizer.pad, self.tokenizer.patch)[0] if mine else None
        targets, rows = team.total((batch.denominator, batch.rows) if mine else (0, 0))
        loss = torch.zeros(())
        if mine:
            batch.denominator, batch.rows = targets, rows
            loss, _ = self.model.loss(batch.to(self.device))
            loss.backward()
        self.step()
        return sum(team.gather(loss.item()))

    def imitate_all(self, documents: list[Rendered], size: int, rng, epochs: int) -> None:
        """Supervised learning on documents in random order, `size` a step."""
        for _ in range(epochs):
            for part in batches_of(documents, size, rng):
                self.imitate(part)

    def prefer(self, pairs: list[tuple], beta: float) -> float:
        """One step of DPO on (chosen, rejected) pairs of (document, log-probability under the model that sampled it); returns the loss."""
        mine, summed = team.share(pairs), 0.0
        for start in range(0, len(mine), 16):
            part = mine[start:start + 16]
            new = self.sequence_logprobs([doc for pair in part for doc, _ in pair]).view(-1, 2)
            old = torch.tensor([[logprob for _, logprob in pair] for pair in part], device=self.device)
            loss = dpo(new[:, 0], new[:, 1], old[:, 0], old[:, 1], beta).sum() / len(pairs)
            loss.backward()
            summed += loss.item()
        self.step()
        return sum(team.gather(summed))

    def sequence_logprobs(self, documents: list[Rendered]) -> torch.Tensor:
        """(D,) log-probability of what is trained on in each document, summed."""
        batch, order = data.packed(documents, self.tokenizer.pad, self.tokenizer.patch)
        logprobs, _ = self.model.target_logprobs(batch.to(self.device))
        owner = torch.tensor(np.repeat(order, [sum(documents[n].mask[1:]) for n in order]), device=self.device)
        return logprobs.new_zeros(len(documents)).index_add(0, owner, logprobs)

    def step(self) -> None:
        """Adds up the gradients of all processes and clips them, updates, clips the logits; the router's balance is left as pre-training made
        it."""
        team.sum_gradients(self.model.parameters())
        if not torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_GRAD).isfinite():
            raise BadInput("the loss or its gradient is not finite, so this step is not taken: what was saved before is intact; try a smaller "
                           "learning rate, or begin from another stage.")
        self.optimizer.step()
        team.share_statistics(self.model.language)
        qk_clip(self.model, QK_CLIP)
        self.model.language.update_bias(0.0)                             # uses up the loads
        self.optimizer.zero_grad()


def everyones(stats: dict) -> dict:
    """What all processes saw of an update; log_ratio becomes a mean over tokens. Steps were taken together."""
    seen = team.gather(stats)
    tokens, log_ratio = team.total((stats["tokens"], stats["log_ratio"]))
    return stats | {"tokens": tokens, "log_ratio": log_ratio / max(1, tokens), "log_ratio_max": max(part["log_ratio_max"] for part in seen),
                    "first": [ratio for part in seen for ratio in part["first"]]}


def batches_of(things: list, size: int, rng):
    """The things in random order, `size` at a time."""
    order = rng.permutation(len(things))
    for start in range(0, len(things), size):
        yield [things[i] for i in order[start:start + size]]


def muon(model: NanoKimi, lr: float, ns_dtype: torch.dtype | None = None) -> MuonClip:
    """MuonClip as in K2.5's RL, without weight decay: steps here are few and small. ns_dtype: of Newton-Schulz; None: what the first process
    finds faster, as others may find otherwise."""
    return MuonClip(model.named_parameters(), lr=lr, weight_decay=0.0, ns_dtype=ns_dtype or team.gather(faster_dtype())[0])
