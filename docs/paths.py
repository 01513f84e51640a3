"""Why the pictures begin easy: how fast forms and the direction of motion are learned, on the way that pre-training takes and on the direct one.

    python docs/paths.py            four small trainings of nano's model, one seed, 7 minutes on one thread; writes results/paths.json

Each reads one kind of document only. `kind`: the form's name in exam-like crowds of one to six things; `way`: the direction of a mover.
"""
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi import data, plan
from nanokimi.config import PRESETS
from nanokimi.model import NanoKimi, choose_kernel
from nanokimi.muon import MuonClip, qk_clip, wsd
from nanokimi.tokenizer import Tokenizer
from nanokimi.world import dense, draw

RESULT = Path(__file__).parents[1] / "results" / "paths.json"
WORDS = {"kind": draw.KINDS, "way": ("up", "down", "left", "right")}


def forms(rng, level):
    """Eight small pictures with one form each, which is what albums begin with."""
    while True:
        shown = [item for item in dense.album(rng, level, 16) if item[1].split()[-1].strip(".") in draw.KINDS]
        if len(shown) >= 5:
            return shown[:8]


def movers(rng, level):
    """Three clips of a yellow square that moves, and nothing that appears or vanishes."""
    clips = []
    while len(clips) < 3:
        clip, words = dense.event(rng, level)
        clips += [(clip, words)] if "moves" in words else []
    return clips


def path(rng, progress):
    """Single forms for the first 30 % of the steps, then crowds that grow, one document in five still single forms."""
    return forms(rng, 0.0) if progress < 0.3 or rng.random() < 0.2 else dense.caption(rng, progress)


# name: (what to read, given the share of the steps that is done; what is scored)
WAYS = {"crowds from the start": (lambda rng, progress: dense.caption(rng, 1.0), "kind"),
        "single forms, then growing crowds": (path, "kind"),
        "movers only": (lambda rng, progress: movers(rng, 0.0), "way"),
        "movers and events": (lambda rng, progress: dense.events(rng, 0.0), "way")}


def batch(maker, progress, step, tokenizer, preset, documents):
    """One packed batch of `documents` documents."""
    rng, drawn = np.random.default_rng([0, step]), []
    while len(drawn) < documents:
        out = tokenizer.render_document(data.dense_document(maker(rng, progress), preset.model.vision))
        drawn += [out] if len(out.ids) <= preset.length else []
    return data.to_batch(data.pack(drawn, preset.length), preset.length, tokenizer.pad, preset.model.vision.patch)


@torch.no_grad()
def accuracy(model, batches, tokens):
    """Share of these tokens that are the model's first choice."""
    model.eval()
    hits = []
    for b in batches:
        learned = torch.isin(b.targets, tokens)
        hits += (model.language.head(model(b)[learned]).argmax(-1) == b.targets[learned]).tolist()
    model.train()
    return float(np.mean(hits))


def train(name, tokenizer, preset, steps=600, documents=16, every=100):
    """The curve of one way: [(step, accuracy)]."""
    maker, scored = WAYS[name]
    torch.manual_seed(0)
    model = NanoKimi(preset.model, tokenizer.media_pad)
    choose_kernel(model, "cpu"), model.train()
    optimizer = MuonClip(model.named_parameters(), lr=preset.lr)
    tokens = torch.tensor([tokenizer.encode(f" {word}")[0] for word in WORDS[scored]])
    exam = dense.caption if scored == "kind" else movers
    test = [batch(exam, float(scored == "kind"), 10 ** 6 + i, tokenizer, preset, 32) for i in range(4)]
    curve = []
    for step in range(steps):
        optimizer.set_schedule(wsd(step, steps, 20, preset.decay_share))
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = model.loss(batch(maker, step / steps, step, tokenizer, preset, documents))
        loss.backward()
        optimizer.step(), optimizer.zero_grad(), qk_clip(model, preset.qk_clip), model.language.update_bias(preset.balance_rate)
        if (step + 1) % every == 0:
            curve.append((step + 1, accuracy(model, test, tokens)))
            print(f"{name:28} step {step + 1:4}  {scored} {curve[-1][1]:.2f}  loss {loss.item():.2f}", flush=True)
    return curve


def main():
    """All four ways, one after the other."""
    torch.set_num_threads(1)
    preset, start = PRESETS["nano"], time.time()
    tokenizer = Tokenizer.train(data.corpus(6000), preset.model.language.vocab, preset.model.vision.patch)
    curves = {name: train(name, tokenizer, preset) for name in WAYS}
    RESULT.write_text(json.dumps({"command": "python docs/paths.py", "seeds": [0], "commit": plan.commit(), "machine": plan.machine(),
                                  "minutes": round((time.time() - start) / 60, 1), "curves": curves}, indent=1) + "\n")


if __name__ == "__main__":
    main()
