"""python docs/look_back.py [RUN]: does nano's language model look up what stands before a word? (docs/LEARNED.md)

First what the cold start of RUN makes of questions about scenes in words (val), by kind of question; then a language model from nothing,
on lists of coloured forms alone, each asked about once. About three minutes on one thread.
"""
import argparse
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi import data, evaluate
from nanokimi.checkpoint import RELEASED
from nanokimi.config import PRESETS
from nanokimi.engine import engine_of
from nanokimi.model import NO_LOSS, NanoKimi, load
from nanokimi.muon import MuonClip, qk_clip, wsd
from nanokimi.rollout import content_of
from nanokimi.tokenizer import Learn, Tokenizer
from nanokimi.world import draw, exam
from nanokimi.world.scenes import pairs

NANO, STEPS, DOCUMENTS = PRESETS["nano"], 350, 24


def by_kind(run, number=240):
    """{first three words of a question: [right or not]} of the first `number` problems of scene_text."""
    problems, out = exam.exam("scene_text", "val", number), defaultdict(list)
    for problem, response in zip(problems, evaluate.ask_chat(engine_of(run, load(run / "sft")), problems)):
        out["how many" if "how many" in problem.question else " ".join(problem.question.split()[:3])].append(content_of(response) == problem.answer)
    return out


def lookups(rng):
    """`red star, blue ring. the ring is blue. the star is red.`: 2 to 6 pairs that training shows, every form once."""
    drawn = {kind: colour for colour, kind in rng.permutation(pairs("train"))[:rng.integers(2, 7)]}
    parts = [", ".join(f"{colour} {kind}" for kind, colour in drawn.items()) + "."]
    for kind in rng.permutation(list(drawn)):
        parts += [f" the {kind} is", Learn(f" {drawn[kind]}.")]
    return parts


def batch_of(tokenizer, seed, number):
    """Documents of lookups, packed."""
    rng = np.random.default_rng(seed)
    return data.packed([tokenizer.render_document(lookups(rng)) for _ in range(number)], tokenizer.pad, tokenizer.patch)[0]


def accuracy(model, tokenizer):
    """Share of 60 new documents' colours that the model would say, the right words standing before them."""
    batch = batch_of(tokenizer, [1, 0], 60)
    targets = batch.targets.flatten()
    where = (targets != NO_LOSS).nonzero()[:, 0]
    with torch.no_grad():
        said = model.language.head(model(batch).flatten(0, 1)[where]).argmax(-1)
    hits = [(a == b).item() for a, b in zip(said, targets[where]) if tokenizer.decode([b.item()]).strip() in draw.COLOURS]
    return np.mean(hits)


def learn(tokenizer):
    """Trains a language model on lookups alone and says how it comes along."""
    torch.manual_seed(0)
    model = NanoKimi(replace(NANO.model, language=replace(NANO.model.language, vocab=tokenizer.vocab_size)), tokenizer.media_pad).train()
    optimizer = MuonClip(model.named_parameters(), lr=NANO.lr, weight_decay=NANO.weight_decay)
    for step in range(STEPS):
        optimizer.set_schedule(wsd(step, STEPS, NANO.warmup, NANO.decay_share))
        loss, _ = model.loss(batch_of(tokenizer, [0, step], DOCUMENTS))
        loss.backward()
        optimizer.step()
        qk_clip(model, NANO.qk_clip)
        model.language.update_bias(NANO.balance_rate)
        optimizer.zero_grad()
        if step % 35 == 34:
            print(f"step {step + 1}: loss {loss.item():.3f}, colours right {accuracy(model.eval(), tokenizer):.2f}", flush=True)
            model.train()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Whether a model can look a word up, and whether one learns to.")
    parser.add_argument("run", nargs="?", type=Path, default=RELEASED)
    run = parser.parse_args().run
    torch.set_num_threads(1)
    for kind, hits in by_kind(run).items():
        print(f"{kind}: {sum(hits)} of {len(hits)}")
    learn(Tokenizer.load(run / "tokenizer", NANO.model.vision.patch))
