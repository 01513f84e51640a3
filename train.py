"""Train nanokimi from nothing: tokenizer -> joint pre-training -> zero-vision cold start -> report card.

    python train.py                          the nano preset: 20 minutes on 2 CPU cores
    python train.py --preset micro           one minute, to see that everything works

Everything lands in runs/PRESET (or --run DIR). Stop it with Ctrl-C or kill it, start it again: it goes on where it was, bit by bit the same.
Left out on purpose: several devices, memory-mapped data (the world is generated), an evaluation that costs more than a minute.
"""
import argparse
import sys
import time
from pathlib import Path

import torch
from lightning.fabric import Fabric

from nanokimi import checkpoint, data, evaluate, plan, report
from nanokimi.config import PRESETS
from nanokimi.model import NanoKimi, choose_kernel, load, save
from nanokimi.muon import MuonClip, qk_clip, wsd
from nanokimi.tokenizer import Tokenizer


def arguments():
    parser = argparse.ArgumentParser(description="Train nanokimi: tokenizer, joint pre-training, zero-vision cold start.")
    parser.add_argument("--preset", choices=PRESETS, default="nano")
    parser.add_argument("--minutes", type=float, help="wall clock for everything; the schedules scale with it (default: the preset's)")
    parser.add_argument("--seed", type=int, default=0, help="of initialisation and data order; the exam never depends on it")
    parser.add_argument("--run", type=Path, help="where the run lives (default: runs/PRESET)")
    parser.add_argument("--stage", choices=["all", "tokenizer", "pretrain", "sft"], default="all", help="do this stage and stop")
    parser.add_argument("--steps", type=int, help="pre-training steps, instead of --minutes")
    parser.add_argument("--threads", type=int, default=plan.cores(), help="CPU threads (default: all cores of this process)")
    parser.add_argument("--precision", choices=["auto", "bf16-mixed", "32-true"], default="auto", help="auto: whichever is faster here")
    parser.add_argument("--wandb", action="store_true", help="also log to Weights & Biases (offline unless you are logged in)")
    return parser.parse_args()


def main():
    args = arguments()
    run = args.run or Path("runs") / args.preset
    torch.set_num_threads(args.threads)
    settings = plan.settle(run, args)                                    # what a resumed run must not change: seed, precision, steps
    preset = PRESETS[settings["preset"]]
    fabric = Fabric(accelerator="auto", devices=1, precision=settings["precision"])
    with plan.interruptible() as stop, plan.Log(run, wandb=args.wandb) as log:
        log.say(f"nanokimi · preset {settings['preset']} · seed {settings['seed']} · {fabric.device} · {settings['precision']} · "
                f"{args.threads} threads · {run}")
        tokenizer = make_tokenizer(run, preset, log)
        for stage in ("pretrain", "sft"):
            if args.stage in ("all", stage) and not (run / stage / "model.safetensors").exists():
                train_stage(stage, fabric, preset, settings, tokenizer, run, log, stop)
        if args.stage == "all":
            evaluate.finish_run(run, preset, fabric, log)


def make_tokenizer(run, preset, log):
    """Train the tokenizer on what the run will read, or load the run's own."""
    folder = run / "tokenizer"
    vision, vocab = preset.model.vision, preset.model.language.vocab
    if not (folder / "tokenizer.tiktoken").exists():
        Tokenizer.train(data.corpus(6000), vocab, vision.patch).save(folder)
        log.say(f"tokenizer: {vocab} tokens")
    return Tokenizer.load(folder, vision.patch)


def train_stage(stage, fabric, preset, settings, tokenizer, run, log, stop):
    """Build model, optimizer and data of a stage, continue from its checkpoint if there is one, fit, save the weights."""
    torch.manual_seed(settings["seed"])
    model = NanoKimi(preset.model, tokenizer.media_pad) if stage == "pretrain" else load(run / "pretrain")
    log.kernels = choose_kernel(model, fabric.device)
    optimizer = MuonClip(model.named_parameters(), lr=preset.lr if stage == "pretrain" else preset.sft_lr, weight_decay=preset.weight_decay)
    state = checkpoint.resume(run / stage, model, optimizer) or {"step": 0, "seconds": 0.0, "totals": {}}
    if stage == "pretrain" and not settings["steps"]:
        plan.set_steps(run, settings, preset, model, tokenizer, log)
    steps = settings["steps"] if stage == "pretrain" else preset.sft_steps
    documents = preset.documents if stage == "pretrain" else preset.sft_documents
    batches = data.Batches(stage, tokenizer, preset.model.vision, settings["seed"], documents, preset.length, steps, first=state["step"])
    model, optimizer = fabric.setup(model.to(fabric.device), optimizer)
    model.mark_forward_method("loss")
    fit(stage, fabric, model, optimizer, batches, preset, state, run, log, stop)
    save(model.module, run / stage)
    for old in checkpoint.checkpoints(run / stage):
        checkpoint.remove(old)


def fit(stage, fabric, model, optimizer, batches, preset, state, run, log, stop):
    """The loop. One step: batch -> loss and gradients -> MuonClip -> QK-Clip -> router balance -> log."""
    core, steps = model.module, batches.steps
    started, last_save = time.perf_counter() - state["seconds"], time.perf_counter()
    val_every, val = max(1, steps // 8), evaluate.quick_documents(stage, batches.tokenizer, preset.model.vision, preset.length)
    model.train()
    for batch, counts in log.progress(stage, data.stream(batches), steps, state["step"]):
        step = state["step"]
        decaying = step > (1 - preset.decay_share) * steps
        optimizer.set_schedule(wsd(step, steps, preset.warmup, preset.decay_share))
        loss = backward(fabric, model, batch.to(fabric.device), preset)
        grad_norm = torch.nn.utils.clip_grad_norm_(core.parameters(), preset.clip_grad)
        if not torch.isfinite(grad_norm):
            sys.exit(f"step {step}: loss {loss} or gradient {grad_norm.item()} is not finite. The last checkpoint is intact; "
                     "try --precision 32-true or a smaller learning rate.")
        optimizer.step()
        clip = qk_clip(core, preset.qk_clip)                             # K2 Alg. 1, after the update
        core.language.update_bias(0.0 if decaying else preset.balance_rate)          # DS3: 0 in the final stage
        optimizer.zero_grad()

        state["step"], state["seconds"] = step + 1, time.perf_counter() - started
        for name, value in counts.items():
            state["totals"][name] = state["totals"].get(name, 0) + value
        row = {"stage": stage, "step": step + 1, "seconds": state["seconds"], "loss": loss, "grad_norm": grad_norm.item(),
               "lr": optimizer.param_groups[0]["lr"], "tokens": state["totals"]["tokens"], **clip}
        if (step + 1) % val_every == 0 or step + 1 == steps:
            row |= evaluate.quick(core, stage, val, fabric)
            model.train()
        log.row(row)
        if stop.asked or time.perf_counter() - last_save > 60 or step + 1 == steps:
            checkpoint.save(run / stage, step + 1, core, optimizer, state)
            last_save = time.perf_counter()
        if stop.asked:
            sys.exit(f"\nstopped at {stage} step {step + 1} of {steps}, saved in {run}. The same command goes on from here.")
    log.say(f"{stage}: {steps} steps, {state['seconds'] / 60:.1f} min, " + plan.shares(state["totals"]))


def backward(fabric, model, batch, preset):
    """Loss and gradients of a batch, in micro-batches that add up to exactly the full batch; returns the cross-entropy."""
    total = 0.0
    for micro in batch.split(preset.micro_rows, model.module.media_pad):
        loss, parts = model.loss(micro)
        fabric.backward(loss)
        total += parts["ce"].item()
    return total


if __name__ == "__main__":
    main()
