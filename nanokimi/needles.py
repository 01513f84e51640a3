"""Needles: one fact in a long text, two seconds in a long clip; asked by length and depth, before and after the context was extended.

    python -m nanokimi.needles runs/nano                                        after train.py --stage longctx; writes runs/nano/needles.png
    python -m nanokimi.needles --split test --out results/needles.json runs/s0  and the same picture beside the file

Three models answer: `pretrain` as it is, `yarn` (the same weights with YaRN's angles, no training), `longctx` (trained on long documents).
Lengths are shares of a row of pre-training, which is YaRN's original length: beyond it, `pretrain` meets positions that it never saw.
`scene` (a picture shows from left to right: ...) and `clip` (a pictogram in an otherwise empty clip: what is this?) are asked as
pre-training asks; `code` (the code of the red fox is 47.) comes up in longctx only. None of this is part of the exam.
"""
import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from . import data, plan
from .checkpoint import need, read_json
from .engine import Engine
from .errors import MOST_THREADS, command, number
from .evaluate import ask_document, note_reading, over_seeds, sum_minutes, write_results
from .kernels import best_device
from .model import load, with_language
from .report import INK, MUTED, save_png, style
from .tokenizer import Rendered, Tokenizer
from .world.long import NEEDLES
from .world.verify import correct

SHARES = (0.25, 0.5, 1, 2, 4)
DEPTHS = (0, 0.25, 0.5, 0.75, 1)
MODELS = {"pretrain": "as pre-trained", "yarn": "YaRN, not trained", "longctx": "YaRN, trained"}
ANSWER = 8                      # tokens left for it


def needles(kind, split, number, depth, length, tokenizer, vision):
    """`number` problems whose prompts and answers fill `length` tokens. The same for every model that is asked."""
    problems = []
    for i in range(number):
        make = lambda size: NEEDLES[kind](np.random.default_rng([i, *kind.encode()]), split, depth, size)
        problems.append(make(data.longest(lambda size: prompt(make(size), tokenizer, vision), length - ANSWER)))
    return problems


def prompt(problem, tokenizer, vision):
    """What the model reads of a problem."""
    return tokenizer.render_parts(Rendered(), [*data.context_parts(problem, vision), data.question_prompt(problem)])


def models(run):
    """{name: model} of the three, and the length in tokens that pre-training read."""
    after, base = load(run / "longctx", best_device()), load(run / "pretrain", best_device())
    cfg = after.config.language
    before = {"pretrain": with_language(base, context=cfg.context),
              "yarn": with_language(base, context=cfg.context, rope_factor=cfg.rope_factor, rope_original=cfg.rope_original)}
    return {**before, "longctx": after}, cfg.rope_original


def measure(run, split, number):
    """{kind: {model: accuracy [length][depth]}} and the lengths in tokens."""
    note_reading(run, split, number, "needles")
    asked, original = models(run)
    vision = asked["longctx"].config.vision
    tokenizer, lengths = Tokenizer.load(run / "tokenizer", vision.patch), [int(share * original) for share in SHARES]
    engines = {name: Engine(model, tokenizer) for name, model in asked.items()}
    grids = {kind: {name: [] for name in engines} for kind in NEEDLES}
    for kind in NEEDLES:
        for length in lengths:
            problems = [p for depth in DEPTHS for p in needles(kind, split, number, depth, length, tokenizer, vision)]
            for name, engine in engines.items():
                hits = [correct(p, answer) for p, answer in zip(problems, ask_document(engine, problems))]
                grids[kind][name].append(np.reshape(hits, (len(DEPTHS), number)).mean(1).tolist())
        means = ", ".join(f"{name} {np.mean(grid[-1]):.2f}" for name, grid in grids[kind].items())
        plan.say(f"{kind} at {lengths[-1]} tokens: {means}")
    return grids, lengths


def picture(grids, lengths, path):
    """Heat maps: a row a kind of needle, a column a model; length across, depth down."""
    fig = Figure(figsize=(9.2, 8.2), layout="constrained")
    axes = fig.subplots(len(grids), len(MODELS), sharex=True, sharey=True)
    for line, (kind, by_model) in zip(axes, grids.items()):
        for ax, (name, words) in zip(line, MODELS.items()):
            heat_map(ax, np.array(by_model[name]).T, f"{kind}: {words}")
        line[0].set_ylabel("depth", fontsize=9, color=MUTED)
    axes[0, 0].set_xticks(range(len(lengths)), lengths)
    axes[0, 0].set_yticks(range(len(DEPTHS)), [f"{depth:.0%}" for depth in DEPTHS])
    for ax in axes[-1]:
        ax.set_xlabel("tokens", fontsize=9, color=MUTED)
    fig.suptitle("Needles found, in %. Right of the line: longer than any row of pre-training", fontsize=10, color=INK, x=0.01, ha="left")
    save_png(fig, path)


def heat_map(ax, accuracy, title):
    """accuracy (depths, lengths) in 0..1, its numbers written in."""
    ax.imshow(accuracy, cmap="YlGn", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(accuracy):
        ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else INK)
    ax.axvline(SHARES.index(1) + 0.5, color=INK, lw=1.2)
    style(ax, title, grid=False)


def rows_of(grids):
    """{"scene_longctx_4x": accuracy over depths, ...}"""
    return {f"{kind}_{name}_{share:g}x": float(np.mean(cells)) for kind, by_model in grids.items() for name, grid in by_model.items()
            for share, cells in zip(SHARES, grid)}


@command
def main():
    """Asks every run; writes the results where --out says so, and a picture for every run."""
    parser = argparse.ArgumentParser(description="Needles by length and depth, before and after the context was extended.")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--problems", type=number(int, 1), default=20, help="a length and depth")
    parser.add_argument("--out", type=Path, help="write a results file, and the mean over runs as a picture beside it")
    parser.add_argument("--threads", type=number(int, 1, MOST_THREADS), default=plan.cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for run in args.runs:
        need(run, "pretrain", "longctx")
    settings = [read_json(run / "run.json", "seed", "machine") for run in args.runs] if args.out else []         # now, not after the exam
    cards, lengths = zip(*(measure(run, args.split, args.problems) for run in args.runs))
    for run, grids, tokens in zip(args.runs, cards, lengths):
        picture(grids, tokens, run / "needles.png")
    if args.out:
        mean = {kind: {name: np.mean([card[kind][name] for card in cards], 0).tolist() for name in MODELS} for kind in NEEDLES}
        write_results(args.out, "needles", "python train.py --stage longctx --run RUN", settings, [sum_minutes(run, "longctx") for run in args.runs],
                      over_seeds([rows_of(card) for card in cards], args.problems * len(DEPTHS), {}), split=args.split, lengths=lengths[0],
                      depths=DEPTHS, cells=mean)
        picture(mean, lengths[0], args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
