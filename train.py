"""Train nanokimi from nothing: tokenizer -> joint pre-training -> zero-vision cold start -> report card.

    python train.py                          the nano preset: 20 minutes on 2 CPU cores
    python train.py --preset micro           one minute, to see that everything works
    python train.py --stage pretrain && python train.py --stage longctx && python train.py
                                             the same with a context four times as long, which comes before the cold start
    python train.py --data DIR               after either: your own text, chats, captioned pictures and clips

Everything lands in runs/PRESET (or --run DIR). Stop it with Ctrl-C or kill it, start it again: it goes on where it was, bit by bit the same on a CPU.
Left out on purpose: memory-mapped data (the world is generated), several machines, an evaluation that costs more than a minute.
"""
import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from nanokimi import checkpoint, data, evaluate, own, plan, team
from nanokimi.config import LONGER, PRESETS
from nanokimi.errors import MOST_SEED, MOST_THREADS, BadInput, command, number
from nanokimi.model import NanoKimi, choose_kernel, load, save, with_language
from nanokimi.muon import MuonClip, qk_clip, wsd
from nanokimi.tokenizer import Tokenizer


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description="Train nanokimi: tokenizer, joint pre-training, zero-vision cold start.")
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    parser.add_argument("--minutes", type=number(float, 0.01), help="wall clock for everything; the schedules scale with it (default: the preset's)")
    parser.add_argument("--seed", type=number(int, 0, MOST_SEED), default=0, help="of initialisation and data order; the exam never depends on it")
    parser.add_argument("--run", type=Path, help="where the run lives (default: runs/PRESET)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="train a finished run on your own files (nanokimi/own.py says which) and stop")
    parser.add_argument("--stage", choices=["all", "tokenizer", "pretrain", "longctx", "sft"], default="all",
                        help="do this stage and stop (all: every one but longctx)")
    parser.add_argument("--steps", type=number(int, 1), help="pre-training steps, instead of --minutes; with --data: steps (200)")
    parser.add_argument("--documents", type=number(int, 4), help="a pre-training step, an even number (default: the preset's); fewer need less memory")
    parser.add_argument("--threads", type=number(int, 1, MOST_THREADS), help="CPU cores to use (default: all that this process may use)")
    parser.add_argument("--devices", type=number(int, 1), help="processes (default: 2 on a CPU with two cores or more, else 1)")
    parser.add_argument("--precision", choices=["auto", *plan.PRECISIONS], default="auto", help="auto: whichever is faster here")
    parser.add_argument("--compile", action="store_true", help="torch.compile the language model's layers (on a CPU: needs g++)")
    parser.add_argument("--save-every", type=number(float, 0), default=60, help="seconds between checkpoints")
    parser.add_argument("--wandb", action="store_true", help="also log to Weights & Biases (offline; WANDB_MODE=online to send)")
    args = parser.parse_args()
    unused = [name for name in ("minutes", "stage", "documents", "devices", "precision", "compile", "wandb")
              if args.data and getattr(args, name) != parser.get_default(name)]
    if unused:
        parser.error(f"--{unused[0]} does not go with --data, which takes --run, --preset, --steps, --seed, --threads and --save-every")
    if args.documents is not None and args.documents % data.SHARDS:
        parser.error(f"--documents {args.documents}: a step has {data.SHARDS} shards, so give a multiple of {data.SHARDS}")
    return args


@command
def main():
    """One training a folder."""
    args = arguments()
    if args.preset == "k2.5":
        raise BadInput("k2.5 is the released size, a trillion parameters: it exists on the meta device only, without contents. "
                       "python -m nanokimi.memory --preset k2.5 shows what it would need.")
    if args.data:
        return own.tune(args)
    run = args.run or Path("runs") / args.preset
    checkpoint.refuse_released(run)
    with plan.hold(run):
        train(args, run)


def train(args, run):
    """All stages, each skipped where it is done already."""
    settings = plan.settle(run, args)                                    # what a resumed run must not change: seed, precision, processes
    preset = PRESETS[settings["preset"]]
    preset = replace(preset, documents=settings["documents"] or preset.documents)
    fabric = plan.launch(settings["devices"], settings["threads"], settings["precision"])        # on a CPU: two processes of one thread (plan.default_devices)
    with plan.together(fabric), plan.Log(run, fabric, args.wandb) as log:
        log.say(f"nanokimi · preset {settings['preset']} · seed {settings['seed']} · {fabric.device} · {settings['precision']} · "
                f"{fabric.world_size} processes x {torch.get_num_threads()} threads · {run}")
        if args.stage not in ("all", "tokenizer") and not checkpoint.finished(run / args.stage):
            plan.base(run, args.stage)                                   # refuses now, not after the tokenizer
        tokenizer = make_tokenizer(run, preset, fabric, log)
        for stage in ("pretrain", "sft") if args.stage == "all" else (args.stage,):
            if checkpoint.finished(run / stage):
                log.say(f"{stage}: finished before, in {run / stage}")
            elif stage != "tokenizer":
                train_stage(stage, fabric, preset, settings, tokenizer, run, log, args.save_every)
    if args.stage == "all" and fabric.is_global_zero:
        torch.set_num_threads(settings["threads"])
        evaluate.finish_run(run, preset, log)


def make_tokenizer(run, preset, fabric, log):
    """Train the tokenizer on what the run will read, or load the run's own."""
    folder = run / "tokenizer"
    vision, vocab = preset.model.vision, preset.model.language.vocab
    if fabric.is_global_zero and not (folder / "tokenizer.tiktoken").exists():
        Tokenizer.train(data.corpus(preset.corpus), vocab, vision.patch).save(folder)
        log.say(f"tokenizer: {vocab} tokens")
    fabric.barrier()
    return Tokenizer.load(folder, vision.patch)


def train_stage(stage, fabric, preset, settings, tokenizer, run, log, save_every):
    """Build model, optimizer and data of a stage, continue from its checkpoint if there is one, fit, save the weights."""
    torch.set_flush_denormal(True)
    torch.manual_seed(settings["seed"])
    model = first_model(stage, preset, tokenizer, plan.base(run, stage)).to(fabric.device)
    choose_kernel(model, fabric.device)
    lr, steps, documents, length = {"pretrain": (preset.lr, settings["steps"], preset.documents, preset.length),
                                    "longctx": (preset.longctx_lr, preset.longctx_steps, preset.longctx_documents, LONGER * preset.length),
                                    "sft": (preset.sft_lr, preset.sft_steps, preset.sft_documents, preset.sft_length)}[stage]
    optimizer = MuonClip(model.named_parameters(), lr=lr, weight_decay=preset.weight_decay,
                         ns_dtype=plan.matmul_dtype(settings["precision"]))
    state = checkpoint.resume(run / stage, model, optimizer) or {"step": 0, "seconds": 0.0, "totals": {}}
    steps = steps or plan.set_steps(run, settings, preset, model, tokenizer, fabric, log)
    batches = data.Batches(stage, tokenizer, preset.model.vision, settings["seed"], documents, length, steps, state["step"],
                           rank=fabric.global_rank, world=fabric.world_size)
    if settings["compile"]:
        plan.compile_layers(model)
    model, optimizer = fabric.setup(model, optimizer)
    model.mark_forward_method("loss")
    with plan.interruptible() as stop:
        fit(stage, fabric, model, optimizer, batches, preset, state, run, log, stop, save_every)
    if fabric.is_global_zero:
        save(model.module, run / stage)
        checkpoint.clear(run / stage)
    fabric.barrier()


def first_model(stage, preset, tokenizer, base):
    """The model that a stage begins with: a new one, or that of the stage before, with what this stage changes about it."""
    model = load(base) if base else NanoKimi(preset.model, tokenizer.media_pad)
    if stage == "longctx":                                               # YaRN: the same weights, other angles
        context = LONGER * preset.length                                 # of what was trained; the old limit of `context` never was
        model = with_language(model, rope_factor=float(LONGER), rope_original=preset.length, context=context)
    model.expect(tokenizer)
    if stage == "sft":
        model.vision.requires_grad_(False), model.projector.requires_grad_(False)        # no picture comes by: nothing to learn from
        model.introduce(tokenizer.chat_ids)
    return model


def fit(stage, fabric, model, optimizer, batches, preset, state, run, log, stop, save_every):
    """The loop. One step: batch -> loss and gradients -> update -> log."""
    core, steps = model.module, batches.steps
    val = evaluate.quick_documents(stage, batches.tokenizer, preset.model.vision, preset.val_problems)[fabric.global_rank::fabric.world_size]
    started, last_save, val_every = time.perf_counter() - state["seconds"], time.perf_counter(), max(8, steps // preset.val_times)
    model.train()
    for shards, counts in log.progress(stage, data.stream(batches, plan.workers(fabric.device)), steps, state["step"]):
        step = state["step"]
        *sums, asked = team.total((*counts.values(), stop.asked))        # over processes
        counts, stopping = dict(zip(counts, sums)), asked > 0
        loss = backward(fabric, model, shards, counts)
        row = {"stage": stage, "step": step + 1, "loss": loss, **update(core, optimizer, preset, step, steps)}

        state["step"], state["seconds"] = step + 1, time.perf_counter() - started
        state["totals"] = {name: state["totals"].get(name, 0) + value for name, value in counts.items()}
        row |= {"seconds": round(state["seconds"], 2), "tokens": state["totals"]["tokens"]}
        if step + 1 == steps or (step + 1) % val_every == 0 and steps - step > val_every // 2:         # not twice at the end
            row |= evaluate.quick(core, stage, val, fabric)
            model.train()
        log.row(row)
        if stopping or time.perf_counter() - last_save > save_every or step + 1 == steps:
            if fabric.is_global_zero:
                checkpoint.save(run / stage, core, optimizer, state)
            last_save = time.perf_counter()
        if stopping:
            log.say(f"stopped at {stage} step {step + 1} of {steps}, saved in {run}. The same command goes on from here.")
            sys.exit(130 if fabric.is_global_zero else 0)                # a launcher kills its siblings when one of them fails
    log.say(f"{stage}: {steps} steps, {state['seconds'] / 60:.1f} min, " + plan.shares(state["totals"]))


def update(core, optimizer, preset, step, steps):
    """Gradients -> MuonClip -> QK-Clip -> router balance. Returns what the log should have of it."""
    optimizer.set_schedule(wsd(step, steps, preset.warmup, preset.decay_share))
    grad_norm = torch.nn.utils.clip_grad_norm_(core.parameters(), preset.clip_grad)
    if not torch.isfinite(grad_norm):
        raise BadInput(f"step {step + 1}: the loss or its gradient ({grad_norm.item()}) is not finite. The last checkpoint is intact; "
                       "try another --run with another --seed, or with --precision 32-true if this was bf16.")
    optimizer.step()
    team.share_statistics(core.language)                                 # max logits and expert loads, over processes
    clip = qk_clip(core, preset.qk_clip)                                 # K2 Alg. 1, after the update
    decaying = step > (1 - preset.decay_share) * steps
    core.language.update_bias(0.0 if decaying else preset.balance_rate)              # DS3: 0 in its last stage, 3 % of the tokens
    optimizer.zero_grad()
    return {"grad_norm": grad_norm.item(), "lr": optimizer.param_groups[0]["lr"], **clip, **optimizer.measured()}


def backward(fabric, model, shards, counts):
    """Loss and gradients of a step; shards add up to exactly the full batch, in one process or several. Returns the mean cross-entropy."""
    total = 0.0
    for i, batch in enumerate(shards):
        batch.denominator, batch.rows = counts["targets"], counts["rows"]
        with fabric.no_backward_sync(model, enabled=i + 1 < len(shards)):
            loss, parts = model.loss(batch.to(fabric.device))
            fabric.backward(loss * fabric.world_size)                    # processes average their gradients; we want the sum
        total += parts["ce"]
    return fabric.all_reduce(total, reduce_op="sum").item()


if __name__ == "__main__":
    main()
