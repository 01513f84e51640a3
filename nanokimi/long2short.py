"""long2short (k1.5 2.4): the same answers in fewer tokens, from one model that thinks long.

    python rl.py long2short                          all methods on the run that finished last, then the picture
    python rl.py long2short --method dpo --run DIR   one of them

Stages of a run: `long` (plans, and looks again), `brief` (same base, same chats, the bare steps), and from these
`l2s-merge`, `l2s-shortest`, `l2s-dpo`, `l2s-rl`, `l2s-toggle`, and `l2s-rigid`, which Toggle is compared with. Each is a stage like any other.
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from . import data, plan, rollout, team
from .checkpoint import finished, read_json, write_json
from .engine import Engine, engine_of
from .errors import MOST_SEED, MOST_THREADS, BadInput, number
from .kernels import best_device
from .learner import Learner, batches_of, muon
from .model import NanoKimi, load, save
from .muon import wsd
from .policy import budget, toggle
from .rollout import Group
from .tokenizer import Rendered

MATTERS = {"merge": (), "shortest": ("problems", "lr"), "dpo": ("problems", "lr"), "rl": ("problems", "lr", "iterations", "weight"),
           "toggle": ("problems", "lr", "iterations", "phase"), "rigid": ("problems", "lr", "iterations")}       # options of each method
METHODS = tuple(MATTERS)
STYLES = ("long", "brief")
K = 8                           # samples a problem: k1.5's for rejection sampling; for the other methods not disclosed: ours
LONGEST = 400                   # tokens of a response of the long model
STREAM = 11


# ---- what is learned from samples --------------------------------------------------------------------------------------------------------

def right_ones(group: Group) -> list:
    """The responses of a finished group that are right."""
    return [talk for talk, right in zip(group.talks, group.right) if right]


def shortest(group: Group, rng):
    """The shortest right response of a group, of equally short ones a random one; None where nothing was right."""
    right = right_ones(group)
    if not right:
        return None
    best = min(talk.response.written for talk in right)
    equal = [talk for talk in right if talk.response.written == best]
    return equal[rng.integers(len(equal))]


def shortest_correct(groups: list[Group], rng) -> list[Rendered]:
    """Prompt and shortest right response of every group that has one, as documents."""
    return [talk.response.trajectory(talk.prompt) for group in groups if (talk := shortest(group, rng)) is not None]


def preferences(group: Group, rng) -> list[tuple]:
    """DPO's pairs of a group: the shortest right response against every wrong one that is longer, and every right one that is 1.5 times
    as long (k1.5 2.4). Empty where nothing was right, or nothing was longer."""
    chosen = shortest(group, rng)
    if chosen is None:
        return []
    least = chosen.response.written
    return [(chosen, talk) for talk, right in zip(group.talks, group.right)
            if (talk.response.written >= 1.5 * least if right else talk.response.written > least)]


def with_reference(talk) -> tuple[Rendered, float]:
    """(document, its log-probability under the model that sampled it): the reference of DPO needs no second model."""
    return talk.response.trajectory(talk.prompt), sum(talk.response.own_logprobs())


# ---- methods -------------------------------------------------------------------------------------------------------------------------------

def merge(a: NanoKimi, b: NanoKimi, share: float = 0.5) -> NanoKimi:
    """Plain average of the weights (k1.5 2.4): (1 - share) a + share b, written into a."""
    others = b.state_dict()
    with torch.no_grad():
        for name, x in a.state_dict().items():
            x.lerp_(others[name], share)
    return a


def sample(engine: Engine, pool: list, seed: int) -> list[Group]:
    """K responses to every problem of the pool."""
    return rollout.sample(engine, pool, K, LONGEST, (STREAM, seed))


def imitate_shortest(learner: Learner, groups: list[Group], rng, epochs: int = 3, documents: int = 32) -> str:
    """Shortest rejection sampling: supervised learning on the shortest right response."""
    chosen = shortest_correct(groups, rng)
    learner.imitate_all(chosen, documents, rng, epochs)
    tokens = np.mean([sum(document.mask) for document in chosen]) if chosen else np.nan
    return (f"{len(chosen)} shortest responses of {tokens:.0f} tokens (all: {np.mean([group.lengths for group in groups]):.0f}); "
            f"{len(groups) - len(chosen)} problems without a right one are left out")


def prefer_shortest(learner: Learner, groups: list[Group], rng, beta: float = 0.1, pairs: int = 24, most: int = 3) -> str:
    """DPO. At most `most` pairs a problem, so that problems weigh alike (ours)."""
    by_group = [preferences(group, rng) for group in groups]
    picked = [pairs_[i] for pairs_ in by_group for i in rng.permutation(len(pairs_))[:most]]
    losses = [learner.prefer([tuple(map(with_reference, pair)) for pair in part], beta) for part in batches_of(picked, pairs, rng)]
    return (f"{len(picked)} pairs of {sum(map(bool, by_group))} problems, {sum(not p for p in by_group)} problems without a pair; loss "
            f"{losses[0]:.3f} to {losses[-1]:.3f}" if losses else "no pair: nothing was learned")


def reinforce(learner: Learner, engine: Engine, pool: list, rewards_of, iterations: int, max_new: int, seed: int, problems: int = 32) -> str:
    """RL, equally many iterations for every method. rewards_of(group, iteration) -> the rewards that it learns from."""
    lengths = []
    for iteration in range(iterations):
        learner.optimizer.set_schedule(1 - 0.9 * iteration / iterations)
        rng = np.random.default_rng([STREAM, seed, iteration, 1])
        groups = rollout.sample(engine, rollout.choose(pool, problems, rng), K, max_new, (STREAM, seed, iteration))
        learner.update(groups, [rewards_of(group, iteration) for group in groups], iteration)
        for group in groups:
            group.remember()
        lengths.append(np.mean([group.lengths for group in groups]))
    return f"{iterations} iterations, mean length {lengths[0]:.0f} to {lengths[-1]:.0f}"


def within_budget(budgets: dict, phase: int, threshold: float = 0.5):
    """Toggle's rewards; with an endless phase the budget is rigid. budgets: {seed of an item: tokens or None}."""
    def rewards_of(group, iteration):
        return toggle(group.rewards, group.lengths, budgets[group.item.seed], iteration, phase, threshold)
    return rewards_of


def budgets_of(groups: list[Group], percentile: float = 30) -> dict:
    """K2.5 Eq. 2 for every problem, from samples of the model that Toggle starts from; frozen from then on."""
    return {group.item.seed: budget(group.lengths, group.right, percentile) for group in groups}


# ---- stages --------------------------------------------------------------------------------------------------------------------------------

def own_answers(engine: Engine, number: int, seed: int) -> list:
    """Problems on pictures and clips with thoughts and answers of the base itself, right ones (rejection sampling): as in k1.5's warm-up,
    thoughts that are taught are verified, and some are about pictures (k1.5 2.2). With text alone, 300 steps forget what RL taught about clips."""
    pool = [item for item in rollout.make_pool(2 * number, 1.0, seed + 2) if item.ability != "code"][:number]
    groups = rollout.sample(engine, pool, 4, LONGEST, (STREAM, seed, 10 ** 6))
    right = [(group.problem, right_ones(group)[0].response) for group in groups if any(group.right)]
    return [replace(problem, reasoning=response.parsed["thinking"].strip(), answer=rollout.content_of(response)) for problem, response in right]


def teach(learner: Learner, style: str, steps: int, seed: int, seen: list, texts: int = 24, pictures: int = 12) -> None:
    """Supervised learning on text chats that think in one style, and on some about what was `seen` (own_answers), retold in that style. The
    chats themselves are the same for every style; how many of them is ours."""
    tokenizer, vision = learner.tokenizer, learner.model.config.vision
    learner.model.vision.requires_grad_(False), learner.model.projector.requires_grad_(False)
    for step in range(steps):
        learner.optimizer.set_schedule(wsd(step, steps, 10, 0.5))
        rng = np.random.default_rng([STREAM, seed, step, 2])
        documents = [data.sft_document(rng, tokenizer, vision, 768, style)[1] for _ in range(texts)]
        for i in rng.permutation(len(seen))[:pictures]:
            messages, thinking = rollout.example_chat(seen[i], vision, rng, style)
            documents.append(tokenizer.render_chat(messages, thinking=thinking))
        learner.imitate(documents)
    learner.model.requires_grad_(True)


def fresh(run: Path, stage: str, lr: float) -> tuple[Learner, Engine]:
    """A learner on the weights of a stage, and the engine that samples from the same weights."""
    model = load(run / stage, best_device()).train()
    engine = engine_of(run, model)
    return Learner(model, engine.tokenizer, muon(model, lr)), engine


def make_pool(number: int, seed: int) -> list:
    """Problems that are answered in words, half of them on pictures and clips: no tools, whose calls are another matter."""
    pool = [item for item in rollout.make_pool(2 * number, 0.5, seed + 1) if item.ability != "code"]
    seen, read = ([item for item in pool if (item.modality != "text") == wanted] for wanted in (True, False))
    return seen[:number // 2] + read[:number - number // 2]


def think(run: Path, args) -> None:
    """The two models that everything starts from: `long` and `brief`, same base, same chats. The long one gets no RL here, unlike the
    paper's: 122 iterations of it, without any penalty, took nearly all its plans and checks away (50 to 36 tokens; one seed)."""
    for style in STYLES:
        if finished(run / style):
            check(run / style, ("base", "seed", "problems", "sft_steps", "sft_lr"), args, "delete it and what came from it (l2s-*)")
    wanted = [style for style in STYLES if not finished(run / style)]
    seen = own_answers(fresh(run, args.base, args.sft_lr)[1], args.problems, args.seed) if wanted else []
    for style in wanted:
        started = time.perf_counter()
        learner, _ = fresh(run, args.base, args.sft_lr)
        teach(learner, style, args.sft_steps, args.seed, seen)
        finish(run, style, learner.model, args, f"{args.sft_steps} steps on text and on {len(seen)} right answers about pictures and clips", started)


def check(folder: Path, names: tuple, args, remedy: str) -> None:
    """BadInput where a finished stage was made with other options than those given now."""
    kept = read_json(folder / "long2short.json", *names)
    for name in names:
        if kept[name] != getattr(args, name):
            raise BadInput(f"{folder} was made with {name} {kept[name]}, not {getattr(args, name)}: give the same, or {remedy}")


def finish(run: Path, stage: str, model: NanoKimi, args, note: str, started: float) -> None:
    """Saves a stage with the settings that made it."""
    team.once(write, run, stage, model, args, note, time.perf_counter() - started)
    plan.say(f"{stage}: {note} ({time.perf_counter() - started:.0f} s)")


def write(run: Path, stage: str, model: NanoKimi, args, note: str, seconds: float) -> None:
    """The files of a stage."""
    (run / stage).mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    write_json(run / stage / "long2short.json", settings | {"note": note, "seconds": seconds, "commit": plan.commit(),
                                                            "machine": plan.machine()})
    save(model, run / stage)


def apply(method: str, run: Path, args, groups: list[Group]) -> None:
    """One method, from the long model, into its stage."""
    started = time.perf_counter()
    learner, engine = fresh(run, "long", args.lr)
    rng = np.random.default_rng([STREAM, args.seed])
    if method == "merge":
        note = "mean of the weights of long and brief"
        merge(learner.model, load(run / "brief", best_device()))
    elif method == "shortest":
        note = imitate_shortest(learner, groups, rng)
    elif method == "dpo":
        note = prefer_shortest(learner, groups, rng)
    else:
        pool, most = [replace(group.item) for group in groups], LONGEST
        if method == "rl":
            rewards_of, most = lambda group, iteration: rollout.with_length(group, args.weight), int(0.4 * LONGEST)     # k1.5: a much smaller maximum
        else:
            rewards_of = within_budget(budgets_of(groups), args.phase if method == "toggle" else 10 ** 9)               # rigid: an endless phase
        note = reinforce(learner, engine, pool, rewards_of, args.iterations, most, args.seed)
    finish(run, f"l2s-{method}", learner.model, args, note, started)


def arguments(argv: list[str]):
    """The command line of python rl.py long2short."""
    parser = argparse.ArgumentParser(prog="rl.py long2short", description="Shorter thinking, same answers: k1.5's four methods and Toggle.")
    add = parser.add_argument
    add("--run", type=Path, help="a run of train.py (default: the one that finished last)")
    add("--method", choices=(*METHODS, "all"), default="all")
    add("--base", help="stage that both models begin from (default: rl if the run has it, else sft)")
    add("--problems", type=number(int, 2), default=384, help="in the pool")
    add("--iterations", type=number(int, 1), default=64, help="of RL, wherever a method has RL")
    add("--sft-steps", type=number(int, 1), default=300)
    add("--sft-lr", type=number(float, 0), default=1e-3)
    add("--lr", type=number(float, 0), default=1e-4)
    add("--weight", type=number(float, 0), default=0.5, help="of the length reward (undisclosed: ours)")
    add("--phase", type=number(int, 1), default=4, help="iterations of a phase of Toggle (undisclosed: ours)")
    add("--seed", type=number(int, 0, MOST_SEED), default=0)
    add("--threads", type=number(int, 1, MOST_THREADS), default=plan.cores())
    return parser.parse_args(argv)


def run_methods(run: Path, args) -> None:
    """The two models and the methods asked for; what is there already is not done again."""
    made = run / "long" / "long2short.json"
    args.base = args.base or (read_json(made, "base")["base"] if made.exists() else "rl" if finished(run / "rl") else "sft")
    think(run, args)
    asked = METHODS if args.method == "all" else (args.method,)
    for method in asked:
        if finished(run / f"l2s-{method}"):
            check(run / f"l2s-{method}", ("base", "seed", "sft_steps", "sft_lr", *MATTERS[method]), args, "delete it to make it anew")
    wanted = [method for method in asked if not finished(run / f"l2s-{method}")]
    team.meet()                                                          # all have looked before one of them writes
    groups = []
    if set(wanted) - {"merge"}:
        _, engine = fresh(run, "long", args.lr)
        groups = sample(engine, make_pool(args.problems, args.seed), args.seed)
        plan.say(f"samples of long: {len(groups)} problems x {K}, {np.mean([g.solved() for g in groups]):.0%} right, mean "
                 f"{np.mean([group.lengths for group in groups]):.0f} tokens")
    for method in wanted:
        apply(method, run, args, groups)
