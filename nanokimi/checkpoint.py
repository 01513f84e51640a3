"""Checkpoints that survive a kill at any moment: safetensors for numbers, JSON for the rest, one rename to make them real.

A checkpoint folder holds everything that the next step depends on: weights, router biases, optimizer state, random state, and the step
(which is the data position: batch `step` is a function of seed and step). No pickle: loading one runs no code.
"""
import errno
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .errors import BadInput, reading

RELEASED = Path(__file__).parent.parent / "results" / "checkpoints"     # what comes with the project: nanokimi/release.py


def flatten_optimizer(optimizer):
    """Optimizer state as {"0/3/momentum_buffer": tensor}: group, parameter, name."""
    return {f"{g}/{i}/{key}": value for g, group in enumerate(optimizer.param_groups) for i, p in enumerate(group["params"])
            for key, value in optimizer.state.get(p, {}).items()}


def restore_optimizer(optimizer, tensors):
    """Put flattened state back; parameters that had none stay without."""
    for name, value in tensors.items():
        g, i, key = name.split("/")
        p = optimizer.param_groups[int(g)]["params"][int(i)]
        if value.dim() and value.shape != p.shape:
            raise ValueError(f"{name} is {tuple(value.shape)}, its parameter {tuple(p.shape)}")
        optimizer.state[p][key] = value.to(p.device, copy=True)         # not a view of the file, which is to be deleted


def write_json(path, content):
    """Write a JSON file atomically."""
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def read_json(path, *names):
    """The JSON object in a file, which must have these names. BadInput if it is damaged."""
    if not Path(path).is_file():                                         # a pipe or a device would be read for ever
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    with reading(path):
        content = json.loads(Path(path).read_text("utf-8"))
        missing = [name for name in names if name not in content]
        if missing or not isinstance(content, dict):
            raise ValueError(f"it has no {missing[0]}" if missing else "it is no JSON object")
    return content


def read_rows(path):
    """The JSON objects in the lines of a file; a line that a kill or a full disk cut off, and what is no object, is left out."""
    rows = []
    for line in Path(path).read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def keep_rows(path, wanted):
    """Drops the rows of a metrics file that are not wanted: those that a killed run wrote after its last checkpoint, and will write again."""
    if path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in read_rows(path) if wanted(row)))
        os.replace(partial, path)


def finished(stage):
    """Whether the folder of a stage has its weights."""
    return (Path(stage) / "model.safetensors").is_file()


ORDER = ("pretrain", "sft", "rl", "short", "tuned")                     # as train.py, rl.py and train.py --data make them
COPY = "runs/released"                                                  # where one may train what was released
MADE_BY = {"pretrain": "train.py", "sft": "train.py", "longctx": "train.py --stage longctx", "rl": "rl.py", "short": "rl.py",
           "long": "rl.py long2short", "brief": "rl.py long2short"}


def need(run, *stages):
    """BadInput where one of these stages of a run is not finished: it names the command that makes it."""
    for stage in stages:
        if not finished(run / stage):
            program = "rl.py long2short" if stage.startswith("l2s-") else MADE_BY.get(stage)
            there = ", ".join(sorted(path.parent.name for path in run.glob("*/model.safetensors"))) or "none"
            preset = read_json(run / "run.json").get("preset", "nano") if (run / "run.json").is_file() else "nano"
            options = f" --preset {preset}" * (preset != "nano" and program is not None and program.startswith("train.py"))
            first, place = (f"cp -r {run} {COPY}, then ", COPY) if is_released(run) else ("", run)
            remedy = f"{first}python {program}{options} --run {place} makes it" if program else f"name another one (finished here: {there})"
            raise BadInput(f"{run} has no finished stage {stage}: {remedy}.")


def is_released(run):
    """Whether these are the checkpoints that came with the project."""
    return run.resolve() == RELEASED.resolve()


def refuse_released(run):
    """BadInput for the released checkpoints: what trains there would change files that git knows."""
    if is_released(run):
        raise BadInput(f"{run} came with the project and stays as it is: cp -r {run} {COPY}, then give --run {COPY}.")


def newest_stage(run, tuned=True):
    """The stage folder that training makes last, by name, as a copied or cloned run's files are all equally old; a stage of another name (one
    that came back from transformers) counts as later. long2short's comparisons and longctx, which cannot chat, are left out, and if wanted
    what was tuned on own files. Of the released checkpoints (card.json) it is `rl`. FileNotFoundError if there is none."""
    if (run / "card.json").is_file():
        return run / ("tuned" if tuned and finished(run / "tuned") else "rl")
    left_out = ("long2short.json",) if tuned else ("long2short.json", "own.json")
    stages = [path.parent for path in run.glob("*/model.safetensors") if path.parent.name != "longctx"
              and (path.parent / "config.json").is_file() and not any((path.parent / name).is_file() for name in left_out)]
    if not stages or not (run / "tokenizer" / "tokenizer.tiktoken").is_file():
        raise FileNotFoundError(f"no trained model in {run}: run `python train.py` first, or give its folder")
    rank = {name: place for place, name in enumerate(ORDER)}
    return max(stages, key=lambda path: (rank.get(path.name, len(ORDER)), (path / "model.safetensors").stat().st_mtime))


def save(folder, model, optimizer, state):
    """Write `folder/step-000123` (state["step"]) and remove its older siblings. Interrupted at any point, the previous checkpoint is still
    whole: for that, a step that is saved already is not written again."""
    folder = Path(folder)
    final, partial = folder / f"step-{state['step']:06d}", folder / "partial"
    if final.exists():
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in flatten_optimizer(optimizer).items()}
    tensors["rng"] = torch.get_rng_state()
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial / "state.safetensors")
    (partial / "state.json").write_text(json.dumps(state) + "\n")
    for file in partial.iterdir():                                      # on disk before the rename says so
        with open(file, "r+b") as handle:                               # Windows flushes only what may be written
            os.fsync(handle.fileno())
    os.replace(partial, final)
    for old in checkpoints(folder)[:-1]:
        shutil.rmtree(old)


def clear(folder):
    """Delete the checkpoints of a stage (it is finished, its weights are saved)."""
    for path in checkpoints(folder):
        shutil.rmtree(path)


def checkpoints(folder):
    """Complete checkpoints of a stage, oldest first."""
    return sorted(Path(folder).glob("step-*"))


def resume(folder, model, optimizer):
    """Load the newest checkpoint into model and optimizer; returns its JSON, or None where there is none to load.

    Raises BadInput when the file is damaged or belongs to another model: say so rather than start over.
    """
    found = checkpoints(folder)
    if not found:
        return None
    with reading(found[-1], "delete that folder to go back to the start of the stage, or give another --run"):
        tensors, state = load_file(found[-1] / "state.safetensors"), read_json(found[-1] / "state.json", "step")
        if not isinstance(state["step"], int) or state["step"] < 0:
            raise ValueError(f"its step is {state['step']}")
        model.load_state_dict({name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")})
        restore_optimizer(optimizer, {name.removeprefix("optimizer/"): t for name, t in tensors.items() if name.startswith("optimizer/")})
        torch.set_rng_state(tensors["rng"])
    return state
