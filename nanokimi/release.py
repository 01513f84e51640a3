"""The checkpoints that come with the project: bf16 weights of one run, its tokenizer, and a card of what each stage answers.

    python -m nanokimi.release runs/s0          writes results/checkpoints, a run folder like any other

They are replaced only when the recipe changes. tests/test_release.py asks every stage again and compares with the card.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import plan
from .checkpoint import RELEASED, need, read_rows, write_json
from .engine import engine_of
from .errors import MOST_THREADS, command, number
from .evaluate import BASE, ask_document, chat_answers, mean_score
from .model import load
from .world import exam

STAGES = ("pretrain", "sft", "rl", "short")                              # in the order they were trained
DOCUMENTS = ("caption_f1", "name_acc", "count_direct", "ocr_digit", "video_direction", "capital")     # asked of the base model
CHATS = ("chat_picture", "name", "count", "direction", "arithmetic", "scene_text", "tool_picture")    # of the other stages


def card(run, stage, number):
    """{"row": mean score} of a stage on the first `number` val problems of a few rows, greedy."""
    engine = engine_of(run, load(run / stage))
    problems = {row: exam.exam(row, "val", number) for row in (*CHATS, *(BASE[name][0] for name in DOCUMENTS))}
    if stage == "pretrain":
        return {name: measure(problems[row], ask_document(engine, problems[row])) for name in DOCUMENTS for row, measure in [BASE[name]]}
    return {row: mean_score(problems[row], chat_answers(engine, problems[row], row in exam.TOOL_ROWS)) for row in CHATS}


def halve(source, target):
    """A stage's weights in bf16. Vectors stay fp32: they are small, and the router's selection bias decides by differences (DS3 keeps it so)."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(source / "config.json", target / "config.json")
    tensors = load_file(source / "model.safetensors")
    save_file({name: t.bfloat16() if t.ndim > 1 else t for name, t in tensors.items()}, target / "model.safetensors")


def thin(source, target, every):
    """Every so many rows of a metrics.jsonl, and those measured on val: what the notebooks draw."""
    rows = read_rows(source)
    target.write_text("".join(json.dumps(row) + "\n" for i, row in enumerate(rows) if i % every == 0 or "val" in row))


def release(run, folder, number):
    """Copies the stages of `run` into `folder`, asks them, writes card.json."""
    need(run, *STAGES)
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    for stage in STAGES:
        halve(run / stage, folder / stage)
    thin(run / "metrics.jsonl", folder / "metrics.jsonl", 10)
    shutil.copy(run / "rl" / "metrics.jsonl", folder / "rl" / "metrics.jsonl")
    settings = json.loads((run / "run.json").read_text())
    write_json(folder / "card.json", {"commit": settings["commit"], "command": settings["command"], "machine": settings["machine"],
                                      "split": "val", "problems": number, "precision": "bf16 matrices, fp32 arithmetic",
                                      "stages": {stage: card(folder, stage, number) for stage in STAGES}})


@command
def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the checkpoints that come with the project.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=RELEASED)
    parser.add_argument("--problems", type=number(int, 2), default=40, help="a row of the card")
    parser.add_argument("--threads", type=number(int, 1, MOST_THREADS), default=plan.cores())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    release(args.run, args.out, args.problems)
    for stage, rows in json.loads((args.out / "card.json").read_text())["stages"].items():
        plan.say(f"{stage:<9}" + " · ".join(f"{name} {value:.2f}" for name, value in rows.items()))


if __name__ == "__main__":
    main()
