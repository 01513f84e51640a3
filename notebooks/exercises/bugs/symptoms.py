"""One small experiment for each planted bug; prints its number. Tiny random models, seconds each.

    python notebooks/exercises/bugs/symptoms.py            all of them
    python notebooks/exercises/bugs/symptoms.py NAME...    some

It runs the nanokimi of the tree that this file lies in.
"""
import random
import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch

from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig
from nanokimi.language import MoE
from nanokimi.model import NanoKimi

PAD = 0
LANGUAGE = dict(dim=32, layers=1, heads=2, q_lora=24, kv_lora=16, nope=8, rope=8, v_dim=16, dense_ffn=48, experts=8, expert_ffn=16)


def model(vocab=32, media_pad=1, **language):
    """A tiny random model."""
    torch.manual_seed(0)
    vision = VisionConfig(patch=4, dim=32, layers=2, heads=2, mlp=48, pos_grid=6)
    return NanoKimi(ModelConfig(vision, LanguageConfig(**LANGUAGE | dict(vocab=vocab) | language)), media_pad)


def noise_rows(length, steps=60):
    """Trains on tokens that nobody can predict (30 of them, drawn anew in every step): the mean loss of the last 10 steps. Documents of
    `length` tokens, one in a row of 24."""
    from nanokimi.data import to_batch
    from nanokimi.tokenizer import Rendered
    net, losses, rng = model().train(), [], np.random.default_rng(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(steps):
        rows = [[Rendered(rng.integers(2, 32, length).tolist(), [True] * length)] for _ in range(16)]
        loss, parts = net.loss(to_batch(rows, 24, PAD, 4))
        loss.backward(), optimizer.step(), optimizer.zero_grad()
        losses.append(parts["ce"].item())
    return np.mean(losses[-10:])


def noise():
    return noise_rows(24)


def short():
    return noise_rows(8)


def balance():
    """A layer of experts at learning rate 0, on tokens that are much alike: only its balance is kept, 30 steps at a rate of 0.02. How far do
    the outputs move, relative to their size, for tokens that still go to the same experts?"""
    torch.manual_seed(0)
    moe = MoE(LanguageConfig(**LANGUAGE)).train()
    for p in moe.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(1, 1, 32) + 0.7 * torch.randn(1, 400, 32)
    before, chosen = moe(x)[0], moe.router(x[0])[1].sort().values
    for _ in range(30):
        moe.load = None
        moe(x)
        moe.update_bias(moe.load, 0.02)
    same = (moe.router(x[0])[1].sort().values == chosen).all(1)
    return ((moe(x)[0] - before)[same].norm() / before[same].norm()).item()


def clips():
    """Two frames, two ways to paint each: what the encoder makes of both together, beyond the sum of what each adds. Relative size of
    f(a, b) - f(a, B) - f(A, b) + f(A, B)."""
    net = model().vision
    frames = torch.randint(0, 256, (2, 2, 64, 48), dtype=torch.uint8)           # (which frame, painted which way, patches, numbers)
    with torch.no_grad():
        f = {(i, j): net(torch.cat([frames[0, i], frames[1, j]]), [(2, 8, 8)]) for i, j in product((0, 1), repeat=2)}
    return ((f[0, 0] - f[0, 1] - f[1, 0] + f[1, 1]).norm() / (f[0, 0] - f[1, 1]).norm()).item()


def twice():
    """The same question asked twice, greedy: how many of the 24 tokens of the answers agree?"""
    from nanokimi.engine import Engine
    from nanokimi.tokenizer import Rendered, Tokenizer
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)}, patch=4)
    engine = Engine(model(tokenizer.vocab_size, tokenizer.media_pad, layers=3, init_std=0.5), tokenizer)
    prompt = Rendered().add(tokenizer.encode("what is it?"))
    first, second = (engine.generate([prompt], max_new=24)[0][0].ids for _ in range(2))
    return sum(a == b for a, b in zip(first, second)) / len(first) * 24


def logits():
    """One layer with weights so large that heads go above tau = 30: the largest logit of the same batch after QK-Clip."""
    from nanokimi.data import to_batch
    from nanokimi.muon import qk_clip
    from nanokimi.tokenizer import Rendered
    net = model(init_std=1.0).train()
    batch = to_batch([[Rendered(np.random.default_rng(i).integers(2, 32, 24).tolist(), [True] * 24)] for i in range(4)], 24, PAD, 4)
    net.loss(batch)
    qk_clip(net, tau=30.0)
    net.loss(batch)
    return qk_clip(net, tau=30.0)["max_logit"]


def tokens():
    """Two wrong responses to a problem, of 10 and of 100 tokens, and a right one: how much harder does the loss push a token of the short
    one than a token of the long one?"""
    from nanokimi.policy import Samples, k25
    owner = torch.tensor([0] * 10 + [1] * 100 + [2] * 50)
    new = torch.zeros(len(owner), requires_grad=True)
    reward = torch.tensor([0.0, 0.0, 1.0])
    k25(Samples(new, torch.zeros(len(owner)), owner, reward, reward.mean().expand(3), reward, len(owner), 3)).backward()
    return (new.grad[0] / new.grad[10]).item()


def blind():
    """A caption is written by somebody who sees no picture: to one fixed answer things are added or taken away at random, 600 times, and
    kept where the mean reward over 40 pictures does not fall. The reward it ends with."""
    from nanokimi.world.verify import caption_f1
    draw = random.Random(0)
    things = [f"{colour} {kind}" for colour in ("red", "green", "blue", "white") for kind in ("circle", "square", "star", "ring")]
    truths = [", ".join(draw.sample(things, draw.randint(1, 3))) for _ in range(40)]
    reward = lambda said: sum(caption_f1(", ".join(sorted(said)), truth) for truth in truths) / len(truths)
    said = set()
    for _ in range(600):
        other = said ^ {draw.choice(things)}
        said = other if reward(other) >= reward(said) else said
    return reward(said)


SYMPTOMS = {f.__name__: f for f in (noise, balance, clips, twice, logits, tokens, blind, short)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    unknown = set(sys.argv[1:]) - set(SYMPTOMS)
    if unknown:
        sys.exit(f"no experiment {', '.join(sorted(unknown))}: there are {', '.join(SYMPTOMS)}")
    for name in sys.argv[1:] or SYMPTOMS:
        print(f"{name} {SYMPTOMS[name]():.3f}", flush=True)
