"""The report card: abilities x modalities, with intervals, blind margins and controls.

    python -m nanokimi.evaluate runs/nano                               val split, 100 problems a row
    python -m nanokimi.evaluate --split test runs/s0 runs/s1 runs/s2    writes results/nano.json from three runs (seeds 0, 1, 2)

Base model rows are asked in the pre-training format (`question: ... answer:`), chat rows in K2.5's chat format after the cold start.
"""
import argparse
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from . import data, plan, report
from .checkpoint import need, read_json, read_rows, write_json
from .engine import engine_of
from .errors import MOST_THREADS, BadInput, command, number
from .kernels import best_device
from .model import NO_LOSS, load
from .rollout import MAX_NEW, begin, content_of, example_chat, respond
from .tokenizer import Rendered
from .world import exam
from .world.problems import COUNTRIES
from .world.types import Image
from .world.verify import correct, score

LENGTHS = {"caption": 40, "box": 16, "points": 48, "ocr": 8, "count": 4, "exact": 10, "program": 80}       # tokens of an answer
THINKING_LENGTH = 120                                                          # tokens of reasoning and answer in a document
VIDEO = ("direction", "appear", "order")
TARGETS = {"caption_f1": ">=0.90", "count_exact": ">=0.85", "name_acc": ">=0.80", "video_acc": ">=0.80", "nplus1_name_ratio": ">=0.80",
           "text_acc": ">=0.85", "zv_format_after": ">=0.90", "zv_acc": ">=0.50", "zv_margin": ">=0.25", "zv_caption_drop": "<=0.05",
           "zv_tool_gap": ">=0.30"}


# ---- asking --------------------------------------------------------------------------------------------------------------------------

def ask_document(engine, problems, think=False):
    """Answers in the pre-training format, one string a problem: at once, or after reasoning aloud."""
    vision, tokenizer = engine.model.config.vision, engine.tokenizer
    prompts = []
    for p in problems:
        parts = [*data.context_parts(p, vision), data.question_prompt(p, "reasoning" if think else "answer")]
        prompts.append(tokenizer.render_parts(Rendered(), parts))
    responses = engine.generate(prompts, max_new=THINKING_LENGTH if think else LENGTHS[problems[0].verifier])
    ordinary = lambda ids: [i for i in ids if i < len(tokenizer.ranks)]
    said = [tokenizer.decode(ordinary(r.ids)) for (r,) in responses]
    return [(text.partition("\nanswer:")[2] if think else text).split("\n")[0].strip() for text in said]


def ask_chat(engine, problems, tools=False, max_new=MAX_NEW):
    """Responses in chat, tools run in the sandbox if they are declared."""
    groups = [begin(engine, p, 1, max_new, (0, i), tools=tools) for i, p in enumerate(problems)]
    respond(engine, groups)
    return [group.responses[0] for group in groups]


def chat_answers(engine, problems, tools=False):
    """Answers in chat after thinking, one string a problem."""
    return [content_of(response) for response in ask_chat(engine, problems, tools)]


def true_document(problem, row, tokenizer, vision):
    """A problem of an exam row in the pre-training format, with its true answer."""
    return tokenizer.render_document(data.context_parts(problem, vision) + data.question_parts(problem, row in THOUGHT))


# ---- rows ----------------------------------------------------------------------------------------------------------------------------

def mean_correct(problems, answers):
    """Accuracy of the answers."""
    return float(np.mean([correct(p, a) for p, a in zip(problems, answers)]))


def mean_score(problems, answers):
    """Mean verifier score of the answers."""
    return float(np.mean([score(p, a) for p, a in zip(problems, answers)]))


def digit_accuracy(problems, answers):
    """Share of digits that stand at their place."""
    hits = [a[i:i + 1] == d for p, a in zip(problems, answers) for i, d in enumerate(p.answer)]
    return float(np.mean(hits))


# row: (exam row, measure); all asked in the pre-training format, answered at once
BASE = {"caption_f1": ("caption", mean_score), "ground_iou": ("ground", mean_score), "point_f1": ("point", mean_score),
        "count_direct": ("count", mean_correct), "name_acc": ("name", mean_correct), "ocr_digit": ("ocr", digit_accuracy),
        "nplus1_name_clip": ("clip_name_unshown", mean_correct), "nplus1_name_picture": ("picture_name_unshown", mean_correct),
        "flag_name": ("flag_name", mean_correct), "capital": ("capital", mean_correct), "program": ("program", mean_score),
        **{f"video_{name}": (name, mean_correct) for name in VIDEO}}
BLIND = ("caption_f1", "ground_iou", "point_f1", "name_acc", "ocr_digit")


def base_rows(engine, split, number):
    """What the pre-trained model sees, hears of and knows, asked in the pre-training format."""
    problems = {name: exam.exam(name, split, number) for name in exam.ROWS}
    answers = {name: ask_document(engine, problems[name]) for name, _ in BASE.values()}
    rows = {row: measure(problems[name], answers[name]) for row, (name, measure) in BASE.items()}
    rows["count_exact"] = mean_correct(problems["count"], ask_document(engine, problems["count"], think=True))      # counting aloud
    rows["video_acc"] = float(np.mean([rows[f"video_{name}"] for name in VIDEO]))
    rows["nplus1_name_ratio"] = ratio(rows["nplus1_name_clip"], rows["nplus1_name_picture"])
    unseen = [i for i, p in enumerate(problems["caption"]) if p.meta["unseen_pair"]]
    if unseen:                                                           # pictures with a colour x kind pair that training never shows
        rows["caption_f1_unseen_pair"] = mean_score(*([of["caption"][i] for i in unseen] for of in (problems, answers)))
    rows |= two_halves(engine, problems, rows) | controls(engine, problems)
    rows["zv_format_before"] = format_rate(ask_chat(engine, problems["chat_picture"]))
    return rows


def two_halves(engine, problems, rows):
    """a x b: flag picture -> capital, picture and clip -> drawing program, over what their two halves give (the second half's score)."""
    capital = ask_document(engine, problems["flag_capital"])
    score = lambda name: mean_score(problems[name], ask_document(engine, problems[name]))
    return clustered("axb_capital_direct", problems["flag_capital"], capital, rows["flag_name"] * rows["capital"]) | {
        "axb_program": ratio(score("picture_program"), rows["program"]), "axb_clip_program": ratio(score("clip_program"), rows["program"])}


def controls(engine, problems):
    """The same questions with other pictures (blind), one frame, or shuffled frames: what can be had without looking."""
    rows = {f"{row}_blind": BASE[row][1](problems[BASE[row][0]], ask_document(engine, exam.blind(problems[BASE[row][0]]))) for row in BLIND}
    rows["count_blind"] = mean_correct(problems["count"], ask_document(engine, exam.blind(problems["count"]), think=True))
    for name, control in (("blind", exam.blind), ("one_frame", exam.one_frame), ("shuffled", exam.shuffled)):
        rows[f"video_{name}"] = float(np.mean([mean_correct(problems[row], ask_document(engine, control(problems[row]))) for row in VIDEO]))
    return rows


def clustered(name, problems, answers, known, draws=1000):
    """a x b: accuracy over what its two halves would give together, with a 95 % interval from resampling countries, not problems."""
    by_country = {}
    for problem, answer in zip(problems, answers):
        by_country.setdefault(problem.meta["country"], []).append(correct(problem, answer))
    groups, rng = [np.array(hits, float) for hits in by_country.values()], np.random.default_rng(0)
    means = [np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))]).mean() for _ in range(draws)]
    low, high = np.quantile(means, [0.025, 0.975])
    value = np.concatenate(groups).mean()
    return {f"{name}{end}": ratio(float(v), known) for end, v in (("", value), ("_low", low), ("_high", high))}


def ratio(a, b):
    """a / b; 0 where b is 0 (nothing to carry over)."""
    return a / b if b else 0.0


def format_rate(responses):
    """Share of responses with one closed, non-empty chain of thought and a non-empty answer."""
    good = [r.parsed["well_formed"] and bool((r.parsed["thinking"] or "").strip()) and bool(content_of(r)) for r in responses]
    return float(np.mean(good))


def tool_rate(responses):
    """Share of responses with a valid tool call: it parses, and its code ran without an error."""
    return float(np.mean([bool(r.tools) and all(r.tools) for r in responses]))


def chat_rows(engine, split, number, known):
    """What the cold start switched on: text with thinking and tools, and pictures that SFT never showed.

    known: flag naming x capital recall of the base model, what a x b is measured against.
    """
    rows, problems = {}, {name: exam.exam(name, split, number) for name in exam.ROWS}
    accuracy = lambda name, responses: mean_correct(problems[name], [content_of(r) for r in responses])
    text = {name: accuracy(name, ask_chat(engine, problems[name], tools=name in exam.TOOL_ROWS))
            for name in ("arithmetic", "scene_text", "tool_text")}
    rows |= {f"text_{name}": value for name, value in text.items()}
    rows["text_acc"] = float(np.mean(list(text.values())))
    pictures = ask_chat(engine, problems["chat_picture"])
    rows["zv_format_after"], rows["zv_acc"] = format_rate(pictures), accuracy("chat_picture", pictures)
    rows["zv_acc_blind"] = accuracy("chat_picture", ask_chat(engine, exam.blind(problems["chat_picture"])))
    rows["zv_margin"] = rows["zv_acc"] - rows["zv_acc_blind"]
    rows["zv_response_tokens"] = float(np.mean([len(r.ids) for r in pictures]))
    needed, other = (ask_chat(engine, problems[name], tools=True) for name in ("tool_picture", "chat_picture"))
    rows["zv_tool_rate_needed"], rows["zv_tool_rate_other"] = tool_rate(needed), tool_rate(other)
    rows["zv_tool_gap"] = rows["zv_tool_rate_needed"] - rows["zv_tool_rate_other"]
    rows["zv_tool_acc"] = accuracy("tool_picture", needed)
    rows |= clustered("axb_capital_thinking", problems["flag_capital"], chat_answers(engine, problems["flag_capital"]), known)
    rows["caption_f1_after"] = mean_score(problems["caption"], ask_document(engine, problems["caption"]))
    return rows


def note_reading(run, split, number, what):
    """Each reading of the test split is noted in the run."""
    if split == "test":
        with open(run / "test_reads.jsonl", "a") as file:
            file.write(json.dumps({"time": time.time(), "problems": number, "commit": plan.commit(), "what": what}) + "\n")


def report_card(run, split, number, stage="sft"):
    """All rows of a run: {"row": value}; `stage` answers what is asked in chat."""
    run = Path(run)
    need(run, "pretrain", stage)
    note_reading(run, split, number, "exam")
    base, chat = (engine_of(run, load(run / folder, best_device())) for folder in ("pretrain", stage))      # both before the first takes its time
    rows = base_rows(base, split, number)
    rows |= chat_rows(chat, split, number, rows["flag_name"] * rows["capital"])
    rows["zv_caption_drop"] = rows["caption_f1"] - rows["caption_f1_after"]
    return rows


# ---- while training ------------------------------------------------------------------------------------------------------------------

QUICK = {"pretrain": ("caption", "count", "name", *VIDEO, "ground", "ocr", "capital", "arithmetic", "scene_text"),
         "sft": ("arithmetic", "scene_text", "tool_text", "caption", "count", "name", "chat_picture")}
THOUGHT = ("arithmetic", "count", "scene_text")                          # rows that documents mostly answer after thinking
QUICK["longctx"] = QUICK["pretrain"]                                     # what must not be forgotten; needles.py asks what was gained


def quick_documents(stage, tokenizer, vision, number):
    """[(row, Rendered)]: val problems with their true answers; rows of the SFT stage as chats, of pre-training as documents."""
    rng, out = np.random.default_rng(0), []
    for row in QUICK[stage]:
        for problem in exam.exam(row, "val", number):
            chat = stage == "sft" and row in ("arithmetic", "scene_text", "tool_text", "chat_picture")
            if chat:
                messages, _ = example_chat(problem, vision, rng)
                doc = tokenizer.render_chat(messages, tools=[data.PYTHON_TOOL] if problem.code else None)
            else:
                doc = true_document(problem, row, tokenizer, vision)
            out.append((row, doc))
    return out


@torch.no_grad()
def quick(model, stage, documents, fabric):
    """Teacher-forced val accuracy: the share of problems whose every trained-on token is the model's first choice, which is what greedy
    decoding would write. Each process brings its part of the documents.

    Returns {"val": {row: accuracy}, "load": {"text"|"image"|"video": (layers, E) token counts}}.
    """
    model.eval()
    cfg, names = model.config.language, QUICK[stage]
    tally = torch.zeros(len(names), 2)                                   # (rows, [right, asked])
    loads = torch.zeros(3, cfg.layers - cfg.dense_layers, cfg.experts)   # (text image video, MoE layers, E)
    documents = sorted(documents, key=lambda item: len(item[1].ids))
    for start in range(0, len(documents), 64):
        rows = documents[start:start + 64]
        batch = data.to_batch([[doc] for _, doc in rows], len(rows[-1][1].ids), 0, model.config.vision.patch)
        types, batch = token_types(batch, rows, model.media_pad, model.config.vision.patch).to(fabric.device), batch.to(fabric.device)
        with fabric.autocast(), recorded_choices(model) as choices:
            hidden = model(batch)
            learned = batch.targets != NO_LOSS
            right = torch.ones_like(learned)
            right[learned] = model.language.head(hidden[learned]).argmax(-1) == batch.targets[learned]
        for (row, _), good in zip(rows, right.all(1).tolist()):
            tally[names.index(row)] += torch.tensor([float(good), 1.0])
        loads += expert_loads(types, choices, cfg.experts)
    tally, loads = fabric.all_reduce(tally, reduce_op="sum"), fabric.all_reduce(loads, reduce_op="sum")
    return {"val": {row: right / asked for row, (right, asked) in zip(names, tally.tolist()) if asked},
            "load": {kind: loads[i].tolist() for i, kind in enumerate(("text", "image", "video")) if loads[i].any()}}


@contextmanager
def recorded_choices(model):
    """Collects what every router chose in the forwards inside: a list of (N, k) per MoE layer."""
    choices, hooks = [], []
    for layer in model.language.layers:
        if layer.moe is not None:
            hooks.append(layer.moe.router.register_forward_hook(lambda module, args, out: choices.append(out[1])))
    try:
        yield choices
    finally:
        for hook in hooks:
            hook.remove()


def token_types(batch, rows, media_pad, patch):
    """(B, T) numbers: 0 padding, 1 text, 2 image, 3 video."""
    types = (batch.segments > 0).long()
    for i, (_, doc) in enumerate(rows):
        kinds = [2 if clip.kind == "image" else 3 for clip in doc.clips for _ in range(clip.tokens(patch))]
        types[i, batch.ids[i] == media_pad] = torch.tensor(kinds, dtype=types.dtype)
    return types


def expert_loads(types, choices, experts):
    """(3, layers, E): how many text, image and video tokens each expert got."""
    def counts(number):
        return torch.stack([chosen[types.flatten() == number].flatten().bincount(minlength=experts) for chosen in choices])
    return torch.stack([counts(number) for number in (1, 2, 3)]).float().cpu()


# ---- the end of a run ------------------------------------------------------------------------------------------------------------------

def finish_run(run, preset, log):
    """train.py's own short evaluation (val split), figures, and one picture with questions, thinking and answers."""
    started = time.perf_counter()
    rows = report_card(run, "val", preset.exam)
    write_json(run / "report.json", {"split": "val", "problems": preset.exam, "rows": rows, "seconds": time.perf_counter() - started})
    print_card(rows, preset.exam, "val")
    report.plot_run(run / "metrics.jsonl", run)
    path = run / "answers.png"
    report.answers_picture(sample_answers(run), path)
    log.say(f"figures: {path}, {run / 'loss.png'}, {run / 'accuracy.png'}, {run / 'load.png'}")
    log.say(f'next: python sample.py "what is in the picture?" --image FILE --run {run}')


def sample_answers(run):
    """Eight val problems asked in chat after the cold start: what answers.png shows."""
    engine = engine_of(run, load(run / "sft", best_device()))
    shown = {"chat_picture": 3, "name": 1, "direction": 1, "order": 1, "arithmetic": 1, "caption": 1}
    picked = [problem for row, number in shown.items() for problem in exam.exam(row, "val", number)]
    items = []
    for problem, response in zip(picked, ask_chat(engine, picked)):
        frames = [frame for part in problem.context if not isinstance(part, str) for frame in frames_of(part)]
        answer = content_of(response)
        items.append({"frames": frames, "question": problem.question, "thinking": response.parsed["thinking"], "answer": answer,
                      "expected": problem.answer, "correct": correct(problem, answer)})
    return items


def frames_of(part):
    """The frames of a clip, or a picture as the only one."""
    return [part.pixels] if isinstance(part, Image) else list(part.frames)


def print_card(rows, number, split):
    """The report card on the terminal."""
    table = Table(title=f"report card ({split} split, {number} problems a row)", title_justify="left")
    for column, justify in (("row", "left"), ("value", "right"), ("95 %", "right"), ("target", "right")):
        table.add_column(column, justify=justify)
    for name, value in rows.items():
        rate = not {"f1", "iou", "digit", "ratio", "drop", "gap", "margin", "tokens", "axb", "program"} & set(name.split("_"))
        asked = asked_in(name, number)
        low, high = report.wilson_interval(round(value * asked), asked) if rate and asked else (None, None)
        table.add_row(name, f"{value:.3f}", f"{low:.2f}-{high:.2f}" if low is not None else "", TARGETS.get(name, ""))
    plan.console.print(table)


POOLED = {"video_acc": 3, "video_blind": 3, "video_one_frame": 3, "video_shuffled": 3, "text_acc": 3}       # rows that are the mean of several
PARTS = ("unseen_pair", "illusion", "maze", "pixels", "specks", "digits")                # rows that are part of another one


def asked_in(name, number):
    """How many different problems stand behind a row, where `number` are asked a row; None for a part of a row, and for what is pooled elsewhere."""
    if name == "capital":                                                # greedy answers to the same question tell nothing new
        return min(number, len(COUNTRIES))
    return None if name.endswith(PARTS) or "visual" in name or name.startswith("rl_saving") else number * POOLED.get(name, 1)


def over_seeds(cards, number, targets):
    """Cards of several runs as rows of a results file: mean and standard deviation over seeds."""
    values = {name: [card[name] for card in cards] for name in cards[0]}
    return [{"name": name, "mean": float(np.mean(seen)), "sd": float(np.std(seen, ddof=1)) if len(seen) > 1 else None, "values": seen,
             "problems": asked_in(name, number), "target": targets.get(name)} for name, seen in values.items()]


def trained(run, file):
    """What a later stage noted of itself, with the seed of the run that it began from."""
    return json.loads((run / file).read_text()) | {"seed": json.loads((run / "run.json").read_text())["seed"]}


def write_results(path, module, command, settings, minutes, rows, **more):
    """A results file: `settings` by run, what the trainings noted; `module` is the one that asked now."""
    first = settings[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"experiment": path.stem, "command": command, "commit": first["commit"],
                      "evaluation": {"command": " ".join([f"python -m nanokimi.{module}", *sys.argv[1:]]), "commit": plan.commit(),
                                     "machine": plan.machine()},
                      "machine": first["machine"], "threads": first["threads"], "seeds": [s["seed"] for s in settings],
                      "minutes": minutes, **more, "rows": rows})


def bands(runs, shares=(0.125, 0.25, 0.5, 0.75, 1.0)):
    """What a healthy run shows after these shares of the pre-training steps (machines differ in minutes, not in this), over runs:
    [{"share", "steps": [low, high], "loss": [low, high], "val": {row: [low, high]}}]; loss: mean over the last 50 steps."""
    logs, out = [[row for row in read_rows(run / "metrics.jsonl") if row["stage"] == "pretrain"] for run in runs], []
    for share in shares:
        steps = [round(share * log[-1]["step"]) for log in logs]
        seen = [[row for row in log if row["step"] <= step] for log, step in zip(logs, steps)]
        losses = [float(np.mean([row["loss"] for row in rows[-50:]])) for rows in seen]
        vals = [next((row["val"] for row in reversed(rows) if "val" in row), {}) for rows in seen]
        names = [name for name in vals[0] if all(name in val for val in vals)]
        out.append({"share": share, "steps": [min(steps), max(steps)], "loss": [min(losses), max(losses)],
                    "val": {name: [min(v[name] for v in vals), max(v[name] for v in vals)] for name in names}})
    return out


def sum_minutes(run, *stages):
    """Wall clock minutes that these stages of the run took, from its metrics. BadInput if they are not all there."""
    last = {row["stage"]: row["seconds"] for row in read_rows(run / "metrics.jsonl")}
    if missing := [stage for stage in stages if stage not in last]:
        raise BadInput(f"{run / 'metrics.jsonl'} knows nothing of {missing[0]}: without it there is no results file, so leave --out away.")
    return round(sum(last[stage] for stage in stages) / 60, 2)


def exam_arguments(description, results, stage=False):
    """The command line of what asks the exam, with --stage if wanted; --out is `results` where three runs or more are asked the test split. Sets the threads."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--split", choices=["val", "test"], default="val")
    parser.add_argument("--problems", type=number(int, 2), help="a row (default: 100 on val, 500 on test)")
    parser.add_argument("--out", type=Path, help=f"write the rows to this results file (default with three runs on test: {results})")
    parser.add_argument("--threads", type=number(int, 1, MOST_THREADS), default=plan.cores())
    if stage:
        parser.add_argument("--stage", default="sft", help="what answers in chat: sft, rl, short, l2s-dpo, ...")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.problems = args.problems or {"val": 100, "test": 500}[args.split]
    whole = args.split == "test" and len(args.runs) >= 3 and getattr(args, "stage", "sft") == "sft"
    args.out = args.out or (results if whole else None)
    return args


@command
def main():
    """Asks every run, prints its card, writes the results."""
    args, cards = exam_arguments("Print the report card of one or more runs.", Path("results/nano.json"), stage=True), []
    if args.out:                                                         # read now: what is missing should not end it after the exam
        settings = [read_json(run / "run.json", "steps", "command") for run in args.runs]
        minutes, healthy = [sum_minutes(run, "pretrain", "sft") for run in args.runs], bands(args.runs)
    for run in args.runs:
        cards.append(report_card(run, args.split, args.problems, stage=args.stage))
        print_card(cards[-1], args.problems, args.split)
    if args.out:
        write_results(args.out, "evaluate", settings[0]["command"], settings, minutes, over_seeds(cards, args.problems, TARGETS), split=args.split,
                      steps=[s["steps"] for s in settings], exam=exam.VERSION, bands=healthy)


if __name__ == "__main__":
    main()
