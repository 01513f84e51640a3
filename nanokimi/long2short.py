"""long2short (k1.5 2.4, K15#2.4): the same answers in fewer tokens. So far: shortest rejection sampling, which also closes joint RL.

To come: merging, DPO, long2short RL, Toggle.
"""
import torch

from . import data
from .rollout import Group
from .tokenizer import Rendered, Tokenizer


def shortest_correct(group: Group) -> Rendered | None:
    """Prompt and shortest right response of a finished group as one document; None where nothing was right. Of equally short ones the
    first sample is taken: samples are in random order."""
    right = [talk for talk, reward in zip(group.talks, group.rewards) if reward >= 1.0]
    if not right:
        return None
    best = min(right, key=lambda talk: sum(talk.response.sampled))
    return best.response.trajectory(best.prompt)


def imitate(model, optimizer, documents: list[Rendered], tokenizer: Tokenizer, device) -> None:
    """One optimizer step of supervised learning on these documents."""
    length = -(-max(len(doc.ids) for doc in documents) // 64) * 64
    batch = data.to_batch(data.pack(documents, length), length, tokenizer.pad, tokenizer.patch).to(device)
    loss, _ = model.loss(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
