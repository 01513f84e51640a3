"""One arm of a comparison with one seed: what it may change, how it is trained with train.py's and rl.py's own loops, what it is asked.

    python -m nanokimi.arms runs/claims/optimizer/muon-0 test        trains what is missing, then writes test.json into that folder

nanokimi/claims.py writes the folder's arm.json and starts this, one process and one thread an arm, so that neither the number of cores nor
how busy they are changes a number. Killed or stopped, the same command goes on from the last checkpoint.
"""
import argparse
import json
import math
import sys
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

import rl
import train
from . import checkpoint, data, evaluate, own, plan
from .config import PRESETS
from .engine import Engine
from .errors import command
from .kernels import best_device
from .model import NO_LOSS, NanoKimi, choose_kernel, load, save
from .muon import AdamW, MuonClip
from .rollout import content_of, question_content
from .tokenizer import Learn, Tokenizer
from .vision import MoonViT3D
from .world import content, exam, tools
from .world.verify import score

CLIPS = ("events", "clip")                                               # kinds of documents (data.PRETRAIN)
QUESTIONS = ("clip", "scene", "counting", "naming", "ocr")
VISUAL = (*CLIPS, "interleaved", "album", "handwriting", "caption", "boxes", "scene", "counting", "naming", "ocr")
SAVE_EVERY = 60                 # seconds between checkpoints


@dataclass(frozen=True)
class Settings:
    """Everything that an arm may change; an arm of nanokimi/ledger.py names only what differs."""
    preset: str = "nano"
    steps: int = 300                # of pre-training; 0: it begins from a finished run
    documents: int = 48             # a step
    length: int = 192               # tokens in a packed row
    mix: dict = field(default_factory=lambda: dict(data.PRETRAIN))      # shares of documents by kind
    clips: float | None = None      # share of clips among documents, the rest in proportion
    questions: float | None = None  # share of documents with a picture or clip and questions about it
    vision: float | None = None     # share of pictures and clips over the whole run ...
    vision_from: float = 0.0        # ... none of them before this share of the steps
    frames: int = 4                 # in a chunk; 1: every frame is a picture, and the language model does time
    encoders: int = 1               # 2: clips have one of their own
    optimizer: str = "muon"         # or adamw
    lr: float = 3e-3
    qk_clip: float = 30.0
    sft_steps: int = 0              # of the cold start
    sft_tokens: int = 0             # a step, where arms must read equally much; 0: a number of documents, as train.py
    pictures: float = 0.0           # share of the cold start's chats that are about pictures
    eyes: float = 0.0               # share about pictures of tool problems, answered without the tool; over 0: the arm is asked so, too
    start: str = ""                 # where it begins if steps is 0: "" = the base run, else CLAIM/ARM whose cold start it takes
    rl: dict = field(default_factory=dict)                               # options of rl.py; {} = no RL


# ---- data ------------------------------------------------------------------------------------------------------------------------------

def with_share(mix, kinds, share):
    """The mix with `share` of the documents of these kinds; inside and outside of them proportions stay."""
    inside = sum(value for kind, value in mix.items() if kind in kinds)
    outside = sum(mix.values()) - inside
    scaled = {kind: share * v / inside if kind in kinds else (1 - share) * v / outside for kind, v in mix.items()}
    return {kind: value for kind, value in scaled.items() if value > 0}


def mixture(s, progress):
    """Shares of documents by kind when `progress` of the steps are done."""
    mix = s.mix
    if s.clips is not None:
        mix = with_share(mix, CLIPS, s.clips)
    if s.questions is not None:
        mix = with_share(mix, QUESTIONS, s.questions)
    if s.vision is not None:                                             # later, but more of it: equal totals (K2.5 2.1)
        mix = with_share(mix, VISUAL, s.vision / (1 - s.vision_from) if progress >= s.vision_from else 0.0)
    return mix


@dataclass
class ArmBatches(data.Batches):
    """data.Batches with an arm's mixture; with the default settings, the same batches bit by bit."""
    settings: Settings = field(default_factory=Settings)

    def shard(self, step, shard):
        rng, s = np.random.default_rng([self.seed, data.STAGES[self.stage], step, shard]), self.settings
        if self.stage == "pretrain":
            progress = step / self.steps
            pace = (progress - s.vision_from) / (1 - s.vision_from)      # the path from easy to hard is walked by what there is to see
            drawn = [data.pretrain_document(rng, self.tokenizer, self.vision, self.length, kind, pace if kind in VISUAL else progress)
                     for kind in data.draw_kinds(rng, mixture(s, progress), self.documents // data.SHARDS)]
        elif s.sft_tokens:
            drawn = self.chats(rng, s.sft_tokens // data.SHARDS)
        else:
            return super().shard(step, shard)
        return self.batch(drawn)

    def chats(self, rng, tokens):
        """Chats, some about pictures, until there are `tokens` of them."""
        drawn, s = [], self.settings
        while sum(len(doc.ids) for _, doc in drawn) < tokens:
            dice = rng.random()
            if dice >= s.pictures + s.eyes:
                drawn.append(data.sft_document(rng, self.tokenizer, self.vision, self.length))
            elif len((doc := (own.picture_chat if dice < s.pictures else eye_chat)(self.tokenizer, self.vision, rng)).ids) <= self.length:
                drawn.append(("picture", doc))
        return drawn


def eye_chat(tokenizer, vision, rng):
    """A chat about a picture that asks for the tool, answered without it: what looking alone can learn."""
    problem, = tools.picture_tool_problems(rng, "train")
    answer = {"role": "assistant", "thinking": f" the result is {problem.answer}.", "content": f" {problem.answer}"}
    return tokenizer.render_chat([{"role": "user", "content": question_content(problem, vision)}, answer], thinking=True)


# ---- model and optimizer ---------------------------------------------------------------------------------------------------------------

class TwoEncoders(MoonViT3D):
    """What K2.5 does not do: pictures (and single frames) go through this encoder, clips through a second one."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.clip_vision = MoonViT3D(cfg)                                # the name ends as ADAMW_TABLES wants it

    def forward(self, patches, grid_thw):
        sizes = [t * h * w for t, h, w in grid_thw]
        tokens, parts = [h * w // 4 for _, h, w in grid_thw], patches.split(sizes)
        out = [None] * len(grid_thw)
        for encoder, wanted in ((super().forward, False), (self.clip_vision, True)):
            own_ones = [i for i, (t, _, _) in enumerate(grid_thw) if (t > 1) == wanted]
            if own_ones:
                media = encoder(torch.cat([parts[i] for i in own_ones]), [grid_thw[i] for i in own_ones])        # (M', 4, D)
                for i, piece in zip(own_ones, media.split([tokens[i] for i in own_ones])):
                    out[i] = piece
        return torch.cat(out)                                            # (M, 4, D) in the caller's order


def preset_of(s):
    """train.py's preset with the arm's numbers."""
    preset = PRESETS[s.preset]
    vision = replace(preset.model.vision, frames=s.frames)
    return replace(preset, model=replace(preset.model, vision=vision), documents=s.documents, length=s.length, lr=s.lr, qk_clip=s.qk_clip,
                   sft_steps=s.sft_steps, val_times=1)


def build(s, media_pad):
    """A new model. The language model and the picture encoder begin equally in every arm of a seed."""
    model = NanoKimi(preset_of(s).model, media_pad)
    if s.encoders == 2:
        first = model.vision.state_dict()
        model.vision = TwoEncoders(model.config.vision)
        model.vision.load_state_dict(first | {f"clip_vision.{name}": x for name, x in first.items()})
    return model


def open_stage(folder, s):
    """The model of a finished stage, in eval mode."""
    if s.encoders == 1:
        return load(folder, best_device())
    model = build(s, json.loads((folder / "config.json").read_text())["media_pad"])
    model.load_state_dict(load_file(folder / "model.safetensors"))
    choose_kernel(model, best_device())
    return model.to(best_device()).eval()


def make_optimizer(model, s, stage, preset, precision):
    """The arm's optimizer; the cold start uses the same one."""
    lr = preset.lr if stage == "pretrain" else preset.sft_lr
    if s.optimizer == "muon":
        return MuonClip(model.named_parameters(), lr=lr, weight_decay=preset.weight_decay, ns_dtype=plan.matmul_dtype(precision))
    return AdamW((p for p in model.parameters() if p.requires_grad), lr, preset.weight_decay)


# ---- training --------------------------------------------------------------------------------------------------------------------------

def train_stage(stage, run, s, seed, precision, fabric, log, stop):
    """As train.train_stage, with an arm's data, model and optimizer."""
    if checkpoint.finished(run / stage):
        return
    preset = preset_of(s)
    tokenizer = Tokenizer.load(run / "tokenizer", preset.model.vision.patch)
    torch.manual_seed(seed)
    model = build(s, tokenizer.media_pad) if stage == "pretrain" else open_stage(run / "pretrain", s)
    choose_kernel(model, fabric.device)
    model.expect(tokenizer)
    if stage == "sft":
        model.introduce(tokenizer.chat_ids)
    if stage == "sft" and not (s.pictures or s.eyes):
        model.vision.requires_grad_(False), model.projector.requires_grad_(False)
    optimizer = make_optimizer(model.to(fabric.device), s, stage, preset, precision)
    state = checkpoint.resume(run / stage, model, optimizer) or {"step": 0, "seconds": 0.0, "totals": {}}
    steps, documents, length = ((s.steps, s.documents, s.length) if stage == "pretrain" else
                                (s.sft_steps, preset.sft_documents, preset.sft_length))
    batches = ArmBatches(stage, tokenizer, preset.model.vision, seed, documents, length, steps, state["step"], settings=s)
    model, optimizer = fabric.setup(model, optimizer)
    model.mark_forward_method("loss")
    train.fit(stage, fabric, model, optimizer, batches, preset, state, run, log, stop, SAVE_EVERY)
    checkpoint.write_json(run / f"{stage}.json", {"seconds": state["seconds"], **state["totals"]})
    save(model.module, run / stage)
    checkpoint.clear(run / stage)


def reinforce(run, s, seed, precision):
    """rl.py with the arm's options, without the closing stage."""
    if checkpoint.finished(run / "rl"):
        return
    options = [text for name, value in s.rl.items() for text in ([f"--{name}"] if value is True else [f"--{name}", str(value)])]
    sys.argv = ["rl.py", "--run", str(run), "--seed", str(seed), "--threads", "1", "--precision", precision, *options]
    args = rl.arguments()
    (rl.flywheel if args.flywheel else rl.reinforce)(args, run)


def run_arm(run, note):
    """All stages of an arm that are not done yet. note: what arm.json holds."""
    s, seed = Settings(**note["settings"]), note["seed"]
    fabric = plan.make_fabric(1, note["precision"])
    torch.set_flush_denormal(True)
    with plan.interruptible() as stop, plan.Log(run, fabric) as log:
        if s.steps:
            train_stage("pretrain", run, s, seed, note["precision"], fabric, log, stop)
        if s.sft_steps:
            train_stage("sft", run, s, seed, note["precision"], fabric, log, stop)
    if s.rl:
        reinforce(run, s, seed, note["precision"])


# ---- questions -------------------------------------------------------------------------------------------------------------------------

@torch.no_grad()
def read(model, tokenizer, documents):
    """(exact, nats, targets) by document, teacher-forced: whether every trained-on token is the first choice, their loss, their number."""
    out = [None] * len(documents)
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].ids))
    for start in range(0, len(order), 64):
        part = order[start:start + 64]
        batch = data.to_batch([[documents[i]] for i in part], len(documents[part[-1]].ids), 0, tokenizer.patch)
        batch = batch.to(model.language.head.weight.device)
        where = batch.targets != NO_LOSS                                 # (B, T)
        targets = batch.targets[where]
        logprobs = model.language.head(model(batch)[where]).float().log_softmax(-1)                   # (n, V)
        right, nats = torch.ones_like(where), torch.zeros_like(where, dtype=torch.float32)
        right[where] = logprobs.argmax(-1) == targets
        nats[where] = -logprobs.gather(-1, targets[:, None])[:, 0]
        for i, good, loss, number in zip(part, right.all(1).tolist(), nats.sum(1).tolist(), where.sum(1).tolist()):
            out[i] = (float(good), loss, number)
    return zip(*out)


def documents_row(model, tokenizer, row, split, number):
    """{"exact", "nats"} by problem: an exam row in the pre-training format with its true answers."""
    documents = [evaluate.true_document(p, row, tokenizer, model.config.vision) for p in exam.exam(row, split, number)]
    exact, nats, targets = read(model, tokenizer, documents)
    return {"exact": list(exact), "nats": [loss / n for loss, n in zip(nats, targets)]}


def bits_per_byte(model, tokenizer, split, number):
    """By paragraph of held-out encyclopedia text, its first 500 characters. To compare arms by: the first token is given, the end counts."""
    texts = [text[:500].rsplit(" ", 1)[0] for text in content.wiki(split)[:number]]
    _, nats, _ = read(model, tokenizer, [tokenizer.render_document([Learn(text)]) for text in texts])
    return [loss / math.log(2) / len(text.encode()) for loss, text in zip(nats, texts)]


def told_row(model, tokenizer, row, split, number):
    """By problem of an exam row in chat without thinking: the nats a token of its true answer that its own picture saves, against the
    picture of another problem. 0 where pictures are ignored, and above it long before an answer is right."""
    def chat(problem):
        user, answer = question_content(problem, model.config.vision), f" {problem.answer}"
        return tokenizer.render_chat([{"role": "user", "content": user}, {"role": "assistant", "content": answer}], thinking=False)
    problems = exam.exam(row, split, number)
    _, own_nats, targets = read(model, tokenizer, [chat(p) for p in problems])
    _, blind_nats, _ = read(model, tokenizer, [chat(p) for p in exam.blind(problems)])
    return [(blind - seen) / n for blind, seen, n in zip(blind_nats, own_nats, targets)]


def chat_row(engine, row, split, number, eyes=False):
    """Scores by problem in chat with thinking, greedy; the tool where the row needs it, unless by `eyes`."""
    problems = exam.exam(row, split, number)
    responses = evaluate.ask_chat(engine, problems, tools=row in exam.TOOL_ROWS and not eyes)
    return [float(score(p, content_of(r))) for p, r in zip(problems, responses)]


def from_log(run, row):
    """One number of a whole training: "reward" = mean over RL's iterations (area under the curve), "max_logit" = the largest of
    pre-training, "rollout" = rollout seconds a finished response, "response" = tokens of one."""
    if row == "max_logit":
        return [max(line["max_logit"] for line in checkpoint.read_rows(run / "metrics.jsonl") if line["stage"] == "pretrain")]
    everything = checkpoint.read_rows(run / "rl" / "metrics.jsonl")
    lines = [line for line in everything if "pass_rate" in line]         # iterations in which something was finished
    if row == "reward":
        return [float(np.mean([line["reward"] for line in lines]))]
    tokens = sum(line["rollout_tokens_s"] * line["rollout_s"] for line in lines)
    finished = sum(line["rollout_tokens_s"] * line["rollout_s"] / line["length"] for line in lines)
    return [tokens / finished if row == "response" else sum(line["rollout_s"] for line in everything) / finished]


def measure(run, s, wanted, split, number):
    """{"measure row": [value by problem]} of a trained arm. wanted: [[measure, row], ...] as ledger.METRICS has them."""
    last = next(stage for stage in ("rl", "sft", "pretrain") if checkpoint.finished(run / stage))
    models = lru_cache(maxsize=2)(lambda stage: open_stage(run / stage, s))
    tokenizer, out = Tokenizer.load(run / "tokenizer", PRESETS[s.preset].model.vision.patch), {}
    for kind, row in sorted(wanted):                                     # by measure, so that a model is opened once and few at a time
        if kind in ("exact", "nats"):
            if f"{kind} {row}" not in out:
                out |= {f"{name} {row}": v for name, v in documents_row(models("pretrain"), tokenizer, row, split, number).items()}
        elif kind == "bits":
            out[f"bits {row}"] = bits_per_byte(models(last), tokenizer, split, number)
        elif kind == "told":
            out[f"told {row}"] = told_row(models(last), tokenizer, row, split, number)
        elif kind == "log":
            out[f"log {row}"] = from_log(run, row)
        else:
            out[f"{kind} {row}"] = chat_row(Engine(models(last), tokenizer), row, split, number, s.eyes > 0)
    return out


@command
def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Train and ask one arm of the ledger, whose folder nanokimi.claims prepared.")
    parser.add_argument("run", type=Path)
    parser.add_argument("split", choices=["val", "test"])
    args = parser.parse_args()
    run, split = args.run, args.split
    note = checkpoint.read_json(run / "arm.json", "settings", "seed", "precision", "problems", "wanted")
    torch.set_num_threads(1)
    with plan.hold(run):
        run_arm(run, note)
        evaluate.note_reading(run, split, note["problems"], "claims")
        values = measure(run, Settings(**note["settings"]), note["wanted"], split, note["problems"])
        checkpoint.write_json(run / f"{split}.json", values | {"machine": plan.machine(), "precision": note["precision"], "commit": plan.commit()})


if __name__ == "__main__":
    main()
