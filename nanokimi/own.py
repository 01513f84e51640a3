"""People's own files: text, chats, captioned pictures and clips. A trained run learns from them and keeps what it knew.

    python train.py --data DIR --run runs/nano       writes runs/nano/tuned; sample.py takes it from then on
    python -m nanokimi.own runs/nano DIR             how well the run's stages answer the questions of a folder

What DIR may hold, at any depth:
    *.txt, *.md        text; paragraphs are separated by empty lines
    *.jsonl            a line: {"text": ...} or {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    metadata.jsonl     the imagefolder layout. A line: {"file_name": "a.png", "text": caption}, or "question" and "answer" instead of "text".
                       Pictures, and clips: animations, films, folders of frames. Pictures that no line names are not used
Everything is read before training starts; what cannot be used is one sentence with file and line.
"""
import argparse
import json
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from . import checkpoint, data, plan
from .checkpoint import finished, newest_stage, read_json, write_json
from .engine import Engine, engine_of
from .errors import BadInput, command, reading
from .evaluate import chat_answers, mean_correct
from .kernels import best_device
from .learner import Learner, muon
from .media import FILMS, MediaError, is_animated, load_image, load_video
from .model import load, save
from .muon import wsd
from .rollout import example_chat, question_content
from .tokenizer import Rendered, Tokenizer
from .world import exam
from .world.types import Clip, Image, Problem

QUESTIONS = {"image": "what is in the picture?", "video": "what happens?"}
SHARE = 0.5             # of a step's documents that are theirs; the rest is what the model learned before
DOCUMENTS = 24          # a step
LENGTH = 768            # the longest example, tokens
KNOWN = 192             # the longest document of text, and of what was learned before; twice that for a chat
RATE = 5e-4             # the learning rate (ours)
KEPT = ("name", "arithmetic")            # exam rows asked before and after: what tuning costs


@dataclass
class Example:
    """One thing to learn from. where: file and line, for messages and for what is held out; problem: what can be asked about it, if it is
    a picture or clip; forms: the documents that teach it."""
    where: str
    forms: list[Rendered]
    problem: Problem | None = None
    held_out: bool = False      # one picture or clip in ten, by its file's name: never trained on, always the same ones


# ---- reading -----------------------------------------------------------------------------------------------------------------------------

def read(folder: Path, tokenizer: Tokenizer, vision) -> list[Example]:
    """Every example below a folder. BadInput in one sentence, with file and line, for the first thing that cannot be used."""
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    found = []
    hidden = lambda path: any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts)       # a Mac leaves some
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not hidden(path)):
        name, ending = path.relative_to(folder).as_posix(), path.suffix.lower()
        if path.name == "metadata.jsonl":
            found += [shown(where, row, path.parent, tokenizer, vision) for where, row in lines_of(path, name)]
        elif path.name == "metadata.csv":
            raise BadInput(f"{name}: captions are read from metadata.jsonl, a line {{\"file_name\": ..., \"text\": ...}} for each picture")
        elif ending == ".jsonl":
            found += [example for where, row in lines_of(path, name) for example in said(where, row, tokenizer)]
        elif ending in (".txt", ".md"):
            found += prose(name, text_of(path, name), tokenizer)
    if not found:
        raise BadInput(f"{folder} holds nothing to learn from: text (.txt, .md, .jsonl), or pictures and clips named in a metadata.jsonl")
    for example in found:
        longest = max(len(form.ids) for form in example.forms)
        if longest > LENGTH:
            raise BadInput(f"{example.where}: {longest} tokens, at most {LENGTH} fit")
    return found


def text_of(path: Path, name: str) -> str:
    """A file's text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[:error.start].count(b"\n") + 1
        raise BadInput(f"{name}, line {line}: not UTF-8 text (byte {error.start} of the file)") from error


def lines_of(path: Path, name: str) -> list[tuple[str, dict]]:
    """[(file and line, JSON object)]; empty lines are skipped."""
    rows = []
    for number, line in enumerate(text_of(path, name).split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{name}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise BadInput(f"{name}, line {number}: want an object like {{\"text\": ...}}")
            rows.append((f"{name}, line {number}", row))
    return rows


def strings(where: str, row: dict, *keys: str) -> list[str]:
    """The values of these keys, which must be texts with something in them."""
    for key in keys:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise BadInput(f"{where}: {key} must be a string with something in it" if key in row else f"{where}: {key} is missing")
    return [row[key].strip() for key in keys]


def prose(name: str, text: str, tokenizer: Tokenizer) -> list[Example]:
    """Paragraphs, joined to documents of at most KNOWN tokens; a longer one is cut."""
    pieces, ids = [], []
    for paragraph in filter(None, (part.strip() for part in text.split("\n\n"))):
        new = tokenizer.encode(paragraph + "\n")
        if ids and len(ids) + len(new) > KNOWN:
            pieces.append(ids)
            ids = []
        ids = ids + new
        while len(ids) > KNOWN:
            pieces.append(ids[:KNOWN])
            ids = ids[KNOWN:]
    pieces += [ids] if ids else []
    return [Example(f"{name}, part {n}", [Rendered([*piece, tokenizer.eos], [True] * (len(piece) + 1))]) for n, piece in enumerate(pieces, 1)]


def said(where: str, row: dict, tokenizer: Tokenizer) -> list[Example]:
    """A line of text, or a chat."""
    if "messages" not in row:
        return prose(where, *strings(where, row, "text"), tokenizer)
    messages = row["messages"]
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise BadInput(f"{where}: messages must be a list of objects with role and content")
    for message in messages:
        if message.get("role") not in ("system", "user", "assistant"):
            raise BadInput(f"{where}: role {message.get('role')!r}; known are system, user, assistant")
        strings(where, message, "content")
    if messages[-1]["role"] != "assistant":
        raise BadInput(f"{where}: the last message must be the assistant's, as it is what is learned")
    turns = [{"role": m["role"], "content": (" " if m["role"] == "assistant" else "") + m["content"].strip()} for m in messages]
    return [Example(where, [tokenizer.render_chat(turns, thinking=False)])]


def shown(where: str, row: dict, folder: Path, tokenizer: Tokenizer, vision) -> Example:
    """A picture or clip with its caption, or with a question and its answer: a document as in pre-training, and chats with and without
    thinking (the thought is the answer, as nobody wrote down another)."""
    name, = strings(where, row, "file_name")
    with reading(where, "give the name of a file"):
        path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise BadInput(f"{where}: {name} lies outside of the folder")
    media = open_media(where, path)
    modality = "image" if isinstance(media, Image) else "video"
    asked = "question" in row or "answer" in row
    question, answer = strings(where, row, "question", "answer") if asked else (QUESTIONS[modality], *strings(where, row, "text"))
    clip = data.prepared(media, vision)
    problem = Problem("perception", modality, (clip,), question, answer)       # as small as it is seen: a folder may hold a thousand photos
    document = tokenizer.render_document([clip, "\n", *data.question_parts(problem, think=False)])
    user = {"role": "user", "content": question_content(problem, vision)}
    reply = {"role": "assistant", "thinking": f" {answer}", "content": f" {answer}"}
    chats = [tokenizer.render_chat([user, turn], thinking="thinking" in turn)
             for turn in (reply, {"role": "assistant", "content": f" {answer}"})]
    return Example(where, [document, *chats], problem, zlib.crc32(name.encode(errors="replace")) % 10 == 0)


def open_media(where: str, path: Path) -> Image | Clip:
    """A picture, or a clip where the file is an animation, a film or a folder."""
    try:
        if path.is_dir() or path.suffix.lower() in FILMS or is_animated(path):
            return load_video(path)
        return Image(load_image(path))
    except MediaError as error:
        raise BadInput(f"{where}: {error}") from error


# ---- learning ------------------------------------------------------------------------------------------------------------------------------

def tune(args) -> None:
    """python train.py --data DIR: reads everything, then trains the newest stage of a run on it. BadInput if it cannot."""
    run = args.run or Path("runs") / args.preset
    torch.set_num_threads(args.threads or plan.cores())
    torch.set_flush_denormal(True)
    source = newest_stage(run, tuned=False)
    if finished(run / "tuned"):
        raise BadInput(f"{run / 'tuned'} is finished already: move it away to tune again")
    model = load(source, best_device())
    tokenizer = Tokenizer.load(run / "tokenizer", model.config.vision.patch)
    model.expect(tokenizer)
    examples = read(args.data, tokenizer, model.config.vision)
    with plan.hold(run / "tuned"):
        teach(args, run, source, model, tokenizer, examples)


def teach(args, run: Path, source: Path, model, tokenizer: Tokenizer, examples: list[Example]) -> None:
    """The loop: half a step's documents are theirs, half are known ones (`documents_of`). Goes on from its checkpoint."""
    steps, folder = args.steps or 200, run / "tuned"
    theirs, held = ([e for e in examples if e.held_out == wanted] for wanted in (False, True))
    theirs, held = (theirs, held) if theirs else (examples, [])           # a folder of one or two pictures: nothing is left to hold out
    checksum = zlib.crc32(repr([(form.ids, form.mask) for example in examples for form in example.forms]).encode())
    settle(folder, {"data": str(args.data.resolve()), "examples": len(examples), "checksum": checksum, "steps": steps, "seed": args.seed, "source": source.name})
    plan.say(f"{len(examples)} examples, {len(held)} of them held out; {steps} steps from {source}")
    before = measure(model, tokenizer, held)
    learner = Learner(model.train(), tokenizer, muon(model, RATE))
    state = checkpoint.resume(folder, model, learner.optimizer) or {"step": 0}
    last = time.perf_counter()
    with plan.interruptible() as stop:
        for step in range(state["step"], steps):
            learner.optimizer.set_schedule(wsd(step, steps, 10, 0.5))
            loss = learner.imitate(documents_of(theirs, tokenizer, model.config.vision, np.random.default_rng([args.seed, 3, step])))
            if (step + 1) % 20 == 0:
                plan.say(f"{step + 1:5d}  loss {loss:.3f}")
            if stop.asked or time.perf_counter() - last > args.save_every:
                checkpoint.save(folder, model, learner.optimizer, {"step": step + 1})
                last = time.perf_counter()
            if stop.asked:
                plan.say(f"stopped after step {step + 1}, saved in {folder}. The same command goes on from here.")
                sys.exit(130)
    after = measure(model.eval(), tokenizer, held)
    write_json(folder / "own.json", json.loads((folder / "own.json").read_text()) | {"before": before, "after": after})
    save(model, folder)
    checkpoint.clear(folder)
    plan.say("\n".join(f"{row}: {before[row]:.2f} before, {after[row]:.2f} after" for row in before) + "\n(share answered word for word)")
    plan.say(f'next: python sample.py "{QUESTIONS["image"]}" --image FILE --run {run}')


def settle(folder: Path, settings: dict) -> None:
    """Writes the settings at the first start; a later start goes on only with the same ones."""
    path = folder / "own.json"
    if not path.exists():
        write_json(path, settings)
    kept = read_json(path)                                                # after a failed last save it holds results, too
    changed = [name for name, value in settings.items() if kept.get(name) != value]
    if changed:
        name, = changed[:1]
        raise BadInput(f"{folder} was started with {name} {kept.get(name)}, not {settings[name]}: delete it, or give the same again.")


def documents_of(theirs: list[Example], tokenizer: Tokenizer, vision, rng) -> list[Rendered]:
    """One step's documents."""
    own = [theirs[i] for i in rng.integers(len(theirs), size=int(DOCUMENTS * SHARE))]
    out = [example.forms[rng.integers(len(example.forms))] for example in own]
    known = DOCUMENTS - len(out)
    out += [picture_chat(tokenizer, vision, rng) for _ in range(known // 2)]         # without these, every picture became one of theirs
    out += [data.pretrain_document(rng, tokenizer, vision, KNOWN, kind)[1] for kind in data.draw_kinds(rng, data.PRETRAIN, known // 4)]
    return out + [data.sft_document(rng, tokenizer, vision, 2 * KNOWN)[1] for _ in range(DOCUMENTS - len(out))]


def picture_chat(tokenizer: Tokenizer, vision, rng) -> Rendered:
    """A chat about a picture of the world (train split), with its reasoning as the thought."""
    problems = data.make_problems(str(rng.choice(["naming", "naming", "scene", "counting", "ocr"])), rng)
    problem = problems[rng.integers(len(problems))]
    messages, thinking = example_chat(problem, vision, rng)
    return tokenizer.render_chat(messages, thinking=thinking)


def measure(model, tokenizer: Tokenizer, held: list[Example], number: int = 40) -> dict:
    """{"held out": share of right answers in chat, "name", "arithmetic": rows of the val exam}."""
    engine, own = Engine(model.eval(), tokenizer), [e.problem for e in held if e.problem]
    rows = {"held out": answered(engine, own)} if own else {}
    return rows | {row: answered(engine, exam.exam(row, "val", number)) for row in KEPT}


def answered(engine: Engine, problems: list[Problem]) -> float:
    """Share of right answers in chat, with thinking, as sample.py asks."""
    return mean_correct(problems, chat_answers(engine, problems))


@command
def main() -> None:
    """How well the stages of a run answer a folder's questions."""
    parser = argparse.ArgumentParser(description="Ask a run about the pictures and clips of a folder, in chat.")
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    args, problems = parser.parse_args(), []
    stages = sorted(path.parent for path in args.run.glob("*/model.safetensors"))
    if not stages:
        raise BadInput(f"{args.run} holds no finished stage: python train.py --run {args.run} first, or name another run.")
    for stage in stages:
        engine = engine_of(args.run, load(stage, best_device()))
        problems = problems or [e.problem for e in read(args.data, engine.tokenizer, engine.model.config.vision) if e.problem]
        if not problems:
            raise BadInput(f"{args.data} holds no picture and no clip to ask about.")
        plan.say(f"{stage.name}: {answered(engine, problems):.3f} of {len(problems)}")


if __name__ == "__main__":
    main()
