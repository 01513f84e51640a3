"""Improve a run of train.py by outcome reward: rollouts, verifiers, mirror descent; then shortest rejection sampling.

    python rl.py                             the newest run, 20 minutes on 2 CPU cores
    python rl.py --objective k15             k1.5's objective (also: k25, the default; rest; grpo)

Everything lands in RUN/rl (or RUN/NAME with --name). Stop it with Ctrl-C or kill it, start it again: it goes on where it was.
Left out on purpose: value networks, reward models, asynchronous workers (see nanokimi/policy.py and nanokimi/rollout.py).
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from nanokimi import checkpoint, data, plan, rollout
from nanokimi.engine import Engine
from nanokimi.model import load, save
from nanokimi.muon import MuonClip, qk_clip
from nanokimi.policy import OBJECTIVES, Samples
from nanokimi.tokenizer import Tokenizer
from nanokimi.world.verify import correct


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description="Reinforcement learning from verified outcomes, on text, pictures and clips together.")
    parser.add_argument("--run", type=Path, help="a run of train.py (default: the newest one)")
    parser.add_argument("--name", default="rl", help="folder inside the run")
    parser.add_argument("--objective", choices=OBJECTIVES, default="k25")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--iterations", type=int, help="instead of --minutes")
    parser.add_argument("--problems", type=int, default=32, help="an iteration")
    parser.add_argument("--k", type=int, default=8, help="responses to a problem")
    parser.add_argument("--visual", type=float, default=0.5, help="share of problems on pictures and clips")
    parser.add_argument("--pool", type=int, default=2000, help="problems to draw from")
    parser.add_argument("--inner", type=int, default=1, help="passes over an iteration's responses (k1.5 takes several)")
    parser.add_argument("--step-problems", type=int, default=16, help="problems an optimizer step")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-new", type=int, default=120, help="tokens a turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=plan.cores())
    return parser.parse_args()


def main():
    """One training a folder."""
    args = arguments()
    run = args.run or newest_run()
    with plan.hold(run / args.name):
        torch.set_num_threads(args.threads)
        torch.set_flush_denormal(True)
        train(args, run, run / args.name)


def newest_run():
    """The run whose cold start finished last; exits with a sentence if there is none."""
    found = sorted(Path("runs").glob("*/sft/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        plan.console.print("no run has finished its cold start yet: python train.py first, or give --run.")
        sys.exit(2)
    return found[-1].parent.parent


def train(args, run, folder):
    """Iterations of rollout -> reward -> advantage -> update, until the time is over."""
    model = load(run / "sft").train()
    tokenizer = Tokenizer.load(run / "tokenizer", model.config.vision.patch)
    engine = Engine(model, tokenizer)                                    # the same weights: nothing to hand over
    optimizer = MuonClip(model.named_parameters(), lr=args.lr, weight_decay=0.0)
    pool = rollout.make_pool(args.pool, args.visual, args.seed)
    iteration, started = 0, time.perf_counter()
    with plan.interruptible() as stop:
        while not stop.asked and time.perf_counter() - started < 60 * args.minutes and iteration != args.iterations:
            rng = np.random.default_rng([rollout.STREAM, args.seed, iteration])
            begun = time.perf_counter()
            items = rollout.choose(pool, args.problems, rng)
            groups = rollout.respond(engine, items, args.k, args.max_new, args.temperature, args.seed * 10 ** 6 + 2 * iteration)
            sampled = time.perf_counter()
            stats = update(model, optimizer, groups, args, tokenizer)
            done = time.perf_counter()
            track(groups)
            iteration += 1
            report(iteration, groups, stats, sampled - begun, done - sampled)
    save(model, folder)


def track(groups, memory=0.5):
    """Success of every problem that was asked: what prioritised sampling looks at."""
    for group in groups:
        rate = float(np.mean([correct(group.problem, rollout.content_of(r)) and reward > 0 for r, reward in zip(group.responses, group.rewards)]))
        group.item.success = memory * group.item.success + (1 - memory) * rate


def update(model, optimizer, groups, args, tokenizer):
    """Optimizer steps on the groups whose rewards differ. MuonClip's updates are equally large whatever the gradient: with nothing to
    learn there is no step."""
    learn = [group for group in groups if group.differs]
    stats = {"steps": 0, "log_ratio": [], "most": 0.0}
    for _ in range(args.inner):
        for start in range(0, len(learn), args.step_problems):
            some = learn[start:start + args.step_problems]
            batches = rollout.micro_batches(some, [g.rewards for g in some], tokenizer.patch, tokenizer.pad, 8192)
            tokens, responses = sum(len(b.old) for b in batches), sum(len(b.reward) for b in batches)
            for training in batches:
                backward(model, training, tokens, responses, args, stats)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            qk_clip(model, 30.0)
            model.language.update_bias(0.0)                              # clears the loads; the router's balance is left as it is
            optimizer.zero_grad()
            stats["steps"] += 1
    return stats


def backward(model, training, tokens, responses, args, stats):
    """Adds the gradients of one micro-batch."""
    with torch.autocast("cpu", torch.bfloat16):
        new, _ = model.target_logprobs(training.batch, args.temperature)
    old, owner, *by_response = (torch.from_numpy(a) for a in (training.old, training.owner, training.reward, training.baseline, training.spread))
    OBJECTIVES[args.objective](Samples(new, old, owner, *by_response, tokens, responses)).backward()
    ratio = (new - old).detach()
    stats["log_ratio"].append(ratio.abs().mean().item())
    stats["most"] = max(stats["most"], ratio.abs().max().item())


def report(iteration, groups, stats, rollout_seconds, update_seconds):
    responses = [r for g in groups for r in g.responses]
    rewards = [x for g in groups for x in g.rewards]
    tokens = sum(sum(r.sampled) for r in responses)
    by = {}
    for g in groups:
        by.setdefault(g.item.modality[0] + "." + g.item.ability[:5], []).extend(g.rewards)
    plan.console.print(f"{iteration:4d} reward {np.mean(rewards):.3f} same {np.mean([not g.differs for g in groups]):.2f} len {tokens / len(responses):.0f} "
                       f"cut {np.mean([r.stop == 'length' for r in responses]):.2f} ratio {np.mean(stats['log_ratio'] or [0]):.4f}/{stats['most']:.2f} "
                       f"rollout {rollout_seconds:.1f}s update {update_seconds:.1f}s steps {stats['steps']} "
                       + " ".join(f"{k} {np.mean(v):.2f}" for k, v in sorted(by.items())))


if __name__ == "__main__":
    main()
