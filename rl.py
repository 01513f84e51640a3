"""Improve a run of train.py by outcome reward: rollouts, verifiers, mirror descent; then shortest rejection sampling.

    python rl.py                             the newest run, 20 minutes on 2 CPU cores
    python rl.py --objective k15 --inner 3   k1.5's objective (k25 is the default; also rest, grpo)
    python rl.py long2short                  the same answers in fewer tokens: nanokimi/long2short.py

Everything lands in RUN/rl and RUN/short. Stop it with Ctrl-C or kill it, start it again: it goes on where it was.
Left out on purpose: value networks, reward models, asynchronous workers (see nanokimi/policy.py and nanokimi/rollout.py).
"""
import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from nanokimi import checkpoint, lengths, long2short, pages, plan, rollout, team
from nanokimi.engine import Engine, engine_of
from nanokimi.errors import MOST_SEED, MOST_THREADS, BadInput, command, number, reading
from nanokimi.kernels import best_device
from nanokimi.learner import Learner, muon
from nanokimi.model import load, save
from nanokimi.muon import AdamW
from nanokimi.panel import Panel, summary
from nanokimi.policy import OBJECTIVES, length_weight

SHORT_SHARE = 0.15              # of the minutes: sampling and training for shortest rejection sampling


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description="Reinforcement learning from verified outcomes, on text, pictures and clips together.")
    add = parser.add_argument
    add("--run", type=Path, help="a run of train.py (default: the one that finished last)")
    add("--start", default="sft", help="stage of the run to begin from")
    add("--name", default="rl", help="folder inside the run")
    add("--objective", choices=OBJECTIVES, default="k25")
    add("--minutes", type=number(float, 0.01), default=20, help="wall clock, shortest rejection sampling included")
    add("--iterations", type=number(int, 1), help="of rollout and update, instead of --minutes")
    add("--problems", type=number(int, 1), default=64, help="an iteration")
    add("--k", type=number(int, 1), default=8, help="responses to a problem")
    add("--visual", type=number(float, 0, 1), default=0.6, help="share of problems on pictures and clips")
    add("--pool", type=number(int, 1), default=2000, help="problems to draw from")
    add("--curate", action="store_true", help="measure difficulty first, drop what is always solved or guessed (k1.5 2.1)")
    add("--curriculum", type=number(float, 0, 1), default=0.0, help="share of the time during which harder problems are let in step by step (implies --curate)")
    add("--uniform", action="store_true", help="draw problems uniformly instead of by 1 - success")
    add("--inner", type=number(int, 1), default=1, help="passes over the responses of an iteration (k1.5 takes several)")
    add("--step-problems", type=number(int, 1), default=64, help="problems an optimizer step")
    add("--optimizer", choices=["muon", "adamw"], default="muon", help="muon: MuonClip as K2.5; adamw: smaller steps where gradients are noise")
    add("--lr", type=number(float, 0), default=2e-4, help="ours; a constant 3e-4 forgot names and sums within 65 iterations")
    add("--decay", type=number(float, 0, 1), default=0.9, help="share of the learning rate that is gone at the end, linearly")
    add("--flywheel", action="store_true", help="half of the time RL, then its successes teach the start, then RL from there")
    add("--replay", type=number(float, 0), default=0.0, help="weight of the cold start's text documents in every step, against forgetting (PTX)")
    add("--segment", type=number(int, 1), help="partial rollouts: tokens a response may grow in an iteration (default: no limit)")
    add("--stale", type=number(int, 0), default=0, help="learn from the responses of this many iterations ago (to compare objectives)")
    add("--rollout", choices=["fp32", "bf16"], default="fp32", help="precision of rollouts: fp32 shares the learner's weights, bf16 copies them")
    add("--length-penalty", type=number(float, 0), default=0.0, help="weight of k1.5's length reward")
    add("--length-warmup", type=number(int, 0), default=50, help="iterations without it")
    add("--temperature", type=number(float, 0.01), default=1.0)
    add("--max-new", type=number(int, 1), default=rollout.MAX_NEW, help="tokens a turn")
    add("--seed", type=number(int, 0, MOST_SEED), default=0)
    add("--precision", choices=plan.PRECISIONS, help="of Newton-Schulz (default: whichever is faster here); all else is in fp32")
    add("--threads", type=number(int, 1, MOST_THREADS), default=plan.cores(), help="CPU cores; two or more are used by two processes")
    add("--save-every", type=number(float, 0), default=60, help="seconds between checkpoints")
    args = parser.parse_args()
    args.curate = args.curate or args.curriculum > 0                     # what is hard has to be measured first
    return args


@command
def main():
    """One training a folder."""
    if sys.argv[1:2] == ["long2short"]:
        return shorter(long2short.arguments(sys.argv[2:]))
    args = arguments()
    run = args.run or newest_run()
    checkpoint.refuse_released(run)
    checkpoint.need(run, args.start)
    folder = run / args.name
    if checkpoint.finished(folder) and not (folder / "pool.json").exists():
        raise BadInput(f"{folder} came without the problems that it learned from, so it cannot go on: give another --name to train {args.start} anew.")
    if args.k < 2:
        raise BadInput("--k 1: with one response to a problem there is nothing to compare it with; give 2 or more.")
    train = flywheel if args.flywheel else reinforce
    with plan.hold(run / args.name), plan.processes(args.threads):
        run = team.gather(run)[0]                                        # the newest one, when the first process looked
        trained = train(args, run)
        close(args, run, trained)


def shorter(args):
    """python rl.py long2short: see nanokimi/long2short.py."""
    run = args.run or newest_run()
    checkpoint.refuse_released(run)
    checkpoint.need(run, args.base or "sft")
    with plan.hold(run / "long2short"), plan.processes(args.threads):
        run = team.gather(run)[0]
        long2short.run_methods(run, args)
        if team.rank() == 0:
            torch.set_num_threads(args.threads)                          # the other process has nothing to do any more
            lengths.report(run)


def newest_run():
    """The run whose cold start finished last."""
    found = sorted(Path("runs").glob("*/sft/model.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise BadInput("no run has finished its cold start yet: python train.py first, or give --run.")
    return found[-1].parent.parent


def settle(folder, args):
    """Writes the settings at the first start; a later start must agree with them (minutes, iterations and threads may change)."""
    given = {name: value for name, value in vars(args).items() if name not in ("run", "minutes", "threads", "save_every", "iterations", "precision")}
    given |= {"precision": args.precision} if args.precision else {}
    path = folder / "rl.json"
    folder.mkdir(parents=True, exist_ok=True)
    if team.rank() == 0 and not path.exists():
        checkpoint.write_json(path, {**given, "minutes": args.minutes, "iterations": args.iterations, "machine": plan.machine(), "commit": plan.commit(),
                                     "command": " ".join(["python", *sys.argv]), "threads": args.threads,
                                     "precision": args.precision or plan.faster_precision()})     # the same after a resume
    team.meet()
    kept = checkpoint.read_json(path)
    changed = [name for name, value in given.items() if kept.get(name, value) != value]      # an older run may not know a newer option
    if changed:
        raise BadInput(f"{folder} was started with {changed[0]} {kept[changed[0]]}, not {given[changed[0]]}: give another --name, or the same settings.")


def flywheel(args, run):
    """RL for half of the minutes, supervised learning of the starting stage on what RL solved (RFT), then RL from there: successful
    trajectories are recycled for later joint RL (K2.5 2.3)."""
    half = args.iterations and max(1, args.iterations // 2)
    name, rft = f"{args.name}-first", f"{args.name}-rft"
    first = argparse.Namespace(**vars(args) | {"minutes": args.minutes / 2, "iterations": half, "name": name})
    last = argparse.Namespace(**vars(args) | {"minutes": args.minutes / 2, "iterations": half and max(1, args.iterations - half), "start": rft})
    settle(run / args.name, last)                                        # refuses now, not after half of the time
    if not checkpoint.finished(run / rft):
        reinforce(first, run)
        recycle(args, run, name, run / rft)
    return reinforce(last, run)


def recycle(args, run, source, folder, problems=512, documents=64, most=2, epochs=2, lr=3e-4):
    """RFT: right samples of a finished RL stage, at most `most` a problem, teach the starting stage."""
    sampler, learns = load(run / source, best_device()), load(run / args.start, best_device()).train()
    engine, rng = engine_of(run, sampler), np.random.default_rng([rollout.STREAM, args.seed, 10 ** 6 + 1])
    precision = checkpoint.read_json(run / source / "rl.json", "precision")["precision"]
    pool = read_pool(run / source)
    items = [pool[i] for i in rng.permutation(len(pool))[:problems]]
    done = rollout.sample(engine, items, args.k, args.max_new, (args.seed, 10 ** 6 + 1), args.temperature)
    kept = [talk.response.trajectory(talk.prompt) for group in done for talk in long2short.right_ones(group)[:most]]
    Learner(learns, engine.tokenizer, muon(learns, lr, plan.matmul_dtype(precision))).imitate_all(kept, documents, rng, epochs)
    plan.say(f"flywheel: {len(kept)} successes of {len(done)} problems teach {args.start}; saved in {folder}")
    team.once(save, learns, folder)


def reinforce(args, run):
    """RL until its share of the minutes is over. Returns whether there was anything to do: what is finished is not done again."""
    folder = run / args.name
    settle(folder, args)
    if checkpoint.finished(folder):
        return False
    model = load(run / args.start, best_device()).train()
    engine = engine_of(run, model)                                       # one set of weights samples and learns, but for --rollout bf16
    pool = improve(args, folder, engine)
    team.once(finish, folder, model, pool)
    return True


def close(args, run, trained):
    """Shortest rejection sampling of what RL reached; nothing where it was not trained just now, and both are finished."""
    folder, short = run / args.name, run / ("short" if args.name == "rl" else f"short-{args.name}")
    if checkpoint.finished(short) and not trained:
        plan.say(f"{folder} and {short} are finished: python -m nanokimi.gains {run} compares them; another --name trains again.")
    else:
        shorten(args, run, folder, short)


def finish(folder, model, pool):
    """Writes what RL reached; from the weights on, the stage is finished."""
    checkpoint.write_json(folder / "pool.json", [asdict(item) for item in pool])
    save(model, folder)
    checkpoint.clear(folder)


@dataclass
class Progress:
    """How far RL has come, beside the weights and the optimizer."""
    pool: list                          # the problems, and how often each was solved
    step: int = 0                       # iterations that are over
    seconds: float = 0.0                # wall clock, earlier sittings included
    unfinished: list = field(default_factory=list)       # groups under way (--segment)
    waiting: list = field(default_factory=list)          # of each of the last iterations, groups not learned from yet (--stale)
    barren: int | None = 0              # iterations without an update; None from the first update on

    def share(self, args):
        """Of the iterations or minutes, what is over."""
        return self.step / args.iterations if args.iterations else self.seconds / (60 * args.minutes * (1 - SHORT_SHARE))

    def state(self):
        """As JSON, for a checkpoint."""
        frozen = lambda groups: [rollout.freeze(group) for group in groups]
        return {"step": self.step, "seconds": self.seconds, "barren": self.barren, "pool": [asdict(item) for item in self.pool],
                "unfinished": frozen(self.unfinished), "waiting": [frozen(groups) for groups in self.waiting]}


def read_pool(folder):
    """The problems of a finished RL stage."""
    with reading(folder / "pool.json"):
        return [rollout.Item(**item) for item in json.loads((folder / "pool.json").read_text())]


def improve(args, folder, engine):
    """The RL stage, from its checkpoint if there is one; returns the pool with what is known of its problems."""
    learner = make_learner(args, engine, checkpoint.read_json(folder / "rl.json", "precision")["precision"])
    state = checkpoint.resume(folder, engine.model, learner.optimizer)
    started = time.perf_counter()
    progress = resumed(args, folder, engine, state) if state else Progress(first_pool(args, engine))
    progress.seconds = team.gather(progress.seconds + time.perf_counter() - started)[0]      # curation counts; one clock for all processes
    with plan.interruptible() as stop, Panel(folder, progress.step) as panel:
        iterate(args, folder, engine, learner, progress, stop, panel)
    return progress.pool


def resumed(args, folder, engine, state):
    """The progress that `Progress.state` wrote."""
    with reading(folder, "delete its step-* to begin again, or give another --name"):
        pool = [rollout.Item(**item) for item in state["pool"]]
        thawed = lambda groups: [rollout.thaw(engine, group, pool) for group in groups]
        unfinished, waiting = thawed(state["unfinished"]), [thawed(groups) for groups in state["waiting"]]
    waiting = [rollout.carry_on(engine, groups, args.temperature)[0] for groups in waiting]         # for their rewards; processes meet here
    return Progress(pool, state["step"], state["seconds"], unfinished, waiting, state["barren"])


def make_learner(args, engine, precision):
    """The model that samples is the model that learns."""
    model = engine.model
    optimizer = muon(model, args.lr, plan.matmul_dtype(precision)) if args.optimizer == "muon" else AdamW(model.parameters(), args.lr, weight_decay=0.0)
    return Learner(model, engine.tokenizer, optimizer, args.objective, args.temperature, args.inner, args.step_problems, args.replay, args.seed)


def first_pool(args, engine):
    """The problems to draw from, curated if asked."""
    pool = rollout.make_pool(args.pool, args.visual, args.seed)
    if args.curate:
        removed = rollout.curate(engine, pool, args.seed, args.max_new)
        plan.say(f"curation: {removed['asked']} problems, {removed['always_solved']:.0%} always solved, {removed['guessed']:.0%} "
                 f"guessed without thinking, {removed['kept']} kept")
        if len(pool) < args.problems:
            raise BadInput("curation left fewer problems than an iteration takes: give a larger --pool, or leave --curate away.")
    return pool


def iterate(args, folder, engine, learner, progress, stop, panel):
    """The loop. One iteration: problems -> responses -> rewards -> advantages -> update."""
    sampler = engine if args.rollout == "fp32" else Engine.lowered(engine.model, engine.tokenizer)
    started, last_save, stopping = time.perf_counter() - progress.seconds, time.perf_counter(), False
    while not stopping and (share := progress.share(args)) < 1:
        before, clock = progress.state(), [time.perf_counter()]
        sampler.receive(engine.model)                                         # the hand-over from training to rollout
        handover, sampler.version = time.perf_counter() - clock[0], progress.step
        learner.optimizer.set_schedule(1 - args.decay * share)                # a Muon step is never shorter than its rate: it must shrink to settle
        asked = progress.unfinished + new_groups(args, engine, progress)
        groups, progress.unfinished = rollout.carry_on(sampler, asked, args.temperature, args.segment)
        stopping = team.anyone(stop.asked)
        if stopping:                                                          # a terminal's Ctrl-C kills the tools, too: this iteration never was
            keep(folder, engine, learner, before)
            break
        progress.waiting.append(groups)
        groups = progress.waiting.pop(0) if len(progress.waiting) > args.stale else []
        clock.append(time.perf_counter())
        rewards = [rollout.with_length(group, length_weight(progress.step, args.length_warmup, args.length_penalty)) for group in groups]
        stats = learner.update(groups, rewards, progress.step)
        clock.append(time.perf_counter())

        for group in groups:
            group.remember()
        progress.step, progress.seconds = progress.step + 1, team.gather(time.perf_counter() - started)[0]
        row = summary(groups, progress.unfinished, stats, clock, sampler.version)
        row |= {"iteration": progress.step, "seconds": round(progress.seconds, 2), "handover_s": handover}
        panel.row(row)
        hopeless(row, progress)
        if groups and progress.step % 10 == 1 and team.rank() == 0:
            pages.write(folder / "trajectories.html", groups, engine.tokenizer, progress.step)
        stopping = team.anyone(stop.asked)
        if stopping or time.perf_counter() - last_save > args.save_every:
            keep(folder, engine, learner, progress.state())
            last_save = time.perf_counter()
    if stopping:
        plan.say(f"stopped after iteration {progress.step}, saved in {folder}. The same command goes on from here.")
        sys.exit(0 if team.rank() else 130)                              # a launcher kills its siblings when one of them fails


def new_groups(args, engine, progress):
    """The problems of an iteration, beside those under way; their responses are still empty."""
    rng = np.random.default_rng([rollout.STREAM, args.seed, progress.step])
    share = progress.share(args)
    easiest = 1.0 if share >= args.curriculum else 0.2 + 0.8 * share / args.curriculum
    items = rollout.choose(progress.pool, args.problems - len(progress.unfinished), rng, easiest, not args.uniform)
    return [rollout.start(engine, item, args.k, args.max_new, (args.seed, progress.step, n)) for n, item in enumerate(items)]


def keep(folder, engine, learner, state):
    """Writes a checkpoint; state: what `Progress.state` gave."""
    if team.rank() == 0:
        checkpoint.save(folder, engine.model, learner.optimizer, state)


def hopeless(row, progress, patience=5):
    """One clear sentence when nothing can be learned: in the first iterations no group has responses that differ in reward."""
    if "reward" not in row or progress.barren is None:                   # no response is over yet, or there was something to learn
        return
    progress.barren = None if row["steps"] else progress.barren + 1
    if progress.barren == patience:
        why = "all responses to a problem earned the same" + (" (in the last one: nothing)" if row["reward"] == 0 else "")
        raise BadInput(f"in the first {patience} iterations {why}, so there is nothing to learn from: start from a model that sometimes succeeds and "
                       "sometimes fails (python sample.py shows what it does), raise --temperature or --k, or choose other problems.")


def shorten(args, run, source, folder, problems=768):
    """Shortest rejection sampling (k1.5 2.4): k samples of the stage `source` to problems of the better solved three quarters of its pool,
    supervised learning on the shortest right one. Writes the model into `folder`."""
    engine, pool = engine_of(run, load(source, best_device()).train()), read_pool(source)
    rng = np.random.default_rng([rollout.STREAM, args.seed, 10 ** 6])
    items = sorted(pool, key=lambda item: -item.success)[:2 * problems]
    items = [items[i] for i in rng.permutation(len(items))[:problems]]
    done = rollout.sample(engine, items, args.k, args.max_new, (args.seed, 10 ** 6), args.temperature)
    if not any(any(group.right) for group in done):
        plan.say(f"shortest rejection sampling: no right response to learn from, so {folder} is not written.")
        return
    learner = Learner(engine.model, engine.tokenizer, muon(engine.model, 1e-4))
    note = long2short.imitate_shortest(learner, done, rng, epochs=2, documents=64)
    team.once(save, engine.model, folder)
    plan.say(f"shortest rejection sampling: {note}. Saved in {folder}.")


if __name__ == "__main__":
    main()
