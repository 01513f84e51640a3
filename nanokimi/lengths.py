"""Accuracy against response tokens: what long2short reached.

    python -m nanokimi.lengths runs/nano                                   val split, 100 problems a row
    python -m nanokimi.lengths --split test runs/s0 runs/s1 runs/s2        writes results/long2short.json and its picture

All rows are asked in chat with thinking, greedy. Which method is best is decided on the val split, whatever split is reported.
"""
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from . import plan
from .checkpoint import finished, need
from .engine import engine_of
from .errors import command
from .evaluate import ask_chat, exam_arguments, note_reading, over_seeds, trained, write_results
from .intervals import interval
from .kernels import best_device
from .long2short import LONGEST, METHODS, STYLES, merge
from .model import load
from .report import save_png, style
from .rollout import chat_prompt, content_of
from .tokenizer import Rendered
from .world import exam
from .world.verify import correct

ROWS = {"arithmetic": "text", "scene_text": "text", "chat_picture": "pictures", "count": "pictures", "direction": "clips"}
STAGES = (*STYLES, *(f"l2s-{method}" for method in METHODS))
CANDIDATES = tuple(f"l2s-{method}" for method in METHODS if method != "rigid")          # rigid is what Toggle is compared with
CAPS = (0.25, 0.5, 0.75, 1.0, 1.5)       # of the long model's mean length in a row
SWEEP = (0.25, 0.75)                     # of the weights, beside long (0), merge (0.5) and brief (1)
CHOICE = 100                             # val problems a row by which the best method is chosen
ANSWER = 40                              # tokens for an answer after thinking was ended
TARGETS = {"l2s_token_saving": ">=0.40", "l2s_acc_drop": "<=0.02", "l2s_vs_short": ">=0.05", "long_half_drop": ">=0.10"}


@dataclass
class Answers:
    """What came back to the problems of one row, or of several: right or not, and the tokens it took."""
    hits: list[bool] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.hits))

    @property
    def length(self) -> float:
        return float(np.mean(self.tokens))

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(self.hits + other.hits, self.tokens + other.tokens)


# ---- asking ------------------------------------------------------------------------------------------------------------------------------

def ask(engine, problems) -> Answers:
    """As the model likes to answer."""
    responses = ask_chat(engine, problems, max_new=LONGEST)
    return Answers([correct(p, content_of(r)) for p, r in zip(problems, responses)], [len(r.ids) for r in responses])


def go_on(engine, problems, heads, most) -> Answers:
    """The answers after forced first tokens of each response, which are what is counted."""
    prompts = [chat_prompt(p, engine.tokenizer, engine.model.config.vision) for p in problems]
    forced = [Rendered(p.ids + head, p.mask + [False] * len(head), p.clips) for p, head in zip(prompts, heads)]
    answers = [content_of(r) for (r,) in engine.generate(forced, most)]
    return Answers([correct(p, a) for p, a in zip(problems, answers)], [len(head) for head in heads])


def ask_capped(engine, problems, cap: int) -> Answers:
    """Thinking may take `cap` tokens; what still thinks then is made to answer (</think> is forced)."""
    end, heads = engine.tokenizer.end_think, []
    for response in ask_chat(engine, problems, max_new=cap):
        ids = response.ids
        heads.append(ids[:ids.index(end) + 1] if end in ids else [*ids, end])
    return go_on(engine, problems, heads, ANSWER)


def ask_for_more(engine, problems) -> Answers:
    """Where thinking would end, " check:" stands instead and it goes on: what a model still makes of tokens that are allowed again."""
    end, heads = engine.tokenizer.end_think, []
    for response in ask_chat(engine, problems, max_new=LONGEST):
        ids = response.ids
        heads.append(ids[:ids.index(end)] + engine.tokenizer.encode(" check:") if end in ids else ids[:-1])
    return go_on(engine, problems, heads, LONGEST)


# ---- one run ---------------------------------------------------------------------------------------------------------------------------------

def measure(run: Path, split: str, number: int, only: tuple = STAGES, controls: bool = True) -> dict:
    """{"stages": {stage: {row: Answers}}, "caps": {cap: {row: Answers}}, "sweep": {share: {row: Answers}}, "more": {stage: {row: Answers}}}.
    `only` these stages; without controls, nothing but the stages."""
    note_reading(run, split, number, "long2short")
    exams = {row: exam.exam(row, split, number) for row in ROWS}
    stages = [stage for stage in only if finished(run / stage)]
    out = {"stages": {}, "caps": {}, "sweep": {}, "more": {}}
    for stage in stages:
        engine = engine_of(run, load(run / stage, best_device()))
        out["stages"][stage] = {row: ask(engine, problems) for row, problems in exams.items()}
        if controls and stage in ("l2s-toggle", "l2s-rigid"):
            out["more"][stage] = {row: ask_for_more(engine, problems) for row, problems in exams.items()}
        if controls and stage == "long":
            means = {row: answers.length for row, answers in out["stages"]["long"].items()}
            out["caps"] = {cap: {row: ask_capped(engine, problems, max(1, int(cap * means[row]))) for row, problems in exams.items()}
                           for cap in CAPS}
    for share in SWEEP if controls and set(STYLES) <= set(stages) else ():
        engine = engine_of(run, merge(*(load(run / stage, best_device()) for stage in STYLES), share))
        out["sweep"][share] = {row: ask(engine, problems) for row, problems in exams.items()}
    return out


def together(rows: dict) -> Answers:
    """All rows as one: they have equally many problems."""
    return sum(rows.values(), Answers())


def best_method(stages: dict) -> str:
    """The candidate that saves most among those that lose at most 0.02; if none does, the one that loses least."""
    long = together(stages["long"])
    drop = {name: long.accuracy - together(stages[name]).accuracy for name in CANDIDATES if name in stages}
    fine = [name for name, value in drop.items() if value <= 0.02 + 1e-9]
    return min(fine, key=lambda name: together(stages[name]).length) if fine else min(drop, key=drop.get)


def rows_of(card: dict, best: str) -> dict:
    """The rows of results/long2short.json from one run."""
    all_of = {stage: together(rows) for stage, rows in card["stages"].items()}
    long, chosen, brief = all_of["long"], all_of[best], all_of["brief"]
    out = {"l2s_token_saving": 1 - chosen.length / long.length, "l2s_acc_drop": long.accuracy - chosen.accuracy,
           "l2s_vs_short": chosen.accuracy - brief.accuracy, "l2s_tokens_over_short": chosen.length / brief.length,
           "long_half_drop": long.accuracy - together(card["caps"][0.5]).accuracy}
    out |= {name: float(gaps.mean()) for name, gaps in gains_of(card).items()}
    for stage, answers in all_of.items():
        out |= {f"{stage}_acc": answers.accuracy, f"{stage}_tokens": answers.length}
        out |= {f"{stage}_{row}": rows.accuracy for row, rows in card["stages"][stage].items()}
    for cap, rows in card["caps"].items():
        out |= {f"long_capped_{cap:g}_{row}": answers.accuracy for row, answers in rows.items()}
    return out


def gains_of(card: dict) -> dict:
    """{row: (problems,) differences}: of each method's answers to long's and brief's, and what more tokens give to Toggle's model and to the
    rigid one."""
    all_of = {stage: together(rows) for stage, rows in card["stages"].items()}
    out = {f"l2s-{method}_vs_{other}": gained(all_of[f"l2s-{method}"], all_of[other])
           for method in METHODS if f"l2s-{method}" in all_of for other in STYLES}
    if set(card["more"]) == {"l2s-toggle", "l2s-rigid"}:
        toggle, rigid = (gained(together(card["more"][stage]), all_of[stage]) for stage in ("l2s-toggle", "l2s-rigid"))
        out |= {"toggle_lift_gap": toggle - rigid, "toggle_lift": toggle, "rigid_lift": rigid}
    return out


def gained(answers: Answers, other: Answers) -> np.ndarray:
    """(problems,) 1 where only these answers are right, -1 where only the others are, else 0."""
    return np.array(answers.hits, float) - np.array(other.hits, float)


def rows_over_seeds(cards: list[dict], best: str, number: int) -> list[dict]:
    """The rows of results/long2short.json; those of `gains_of` with "low" and "high", 95 % over seeds and problems."""
    rows, gains = over_seeds([rows_of(card, best) for card in cards], number, TARGETS), [gains_of(card) for card in cards]
    for row in rows:
        if not row["name"].endswith(tuple(f"_{name}" for name in ROWS)):                 # of all kinds of problems, not of one
            row["problems"] = number * len(ROWS)
        if row["name"] in gains[0]:
            _, row["low"], row["high"] = interval([gain[row["name"]] for gain in gains])
    return rows


# ---- showing ---------------------------------------------------------------------------------------------------------------------------------

def print_card(card: dict, number: int, split: str, best: str) -> None:
    """Accuracy and tokens of every stage."""
    table = Table(title=f"long2short ({split} split, {number} problems a row): accuracy @ mean tokens", title_justify="left")
    for column in ("stage", "all", *ROWS):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, rows in card["stages"].items():
        cells = [f"{a.accuracy:.3f} @ {a.length:.0f}" for a in (together(rows), *rows.values())]
        table.add_row(f"{stage} (best on val)" if stage == best else stage, *cells)
    for cap, rows in card["caps"].items():
        table.add_row(f"long, capped at {cap:g} x", *(f"{a.accuracy:.3f} @ {a.length:.0f}" for a in (together(rows), *rows.values())))
    plan.console.print(table)


def picture(cards: list[dict], path: Path) -> None:
    """Accuracy against mean response tokens, over seeds: overall, by ability, and long against its cap."""
    pooled = {part: {key: {row: sum((card[part][key][row] for card in cards), Answers()) for row in ROWS} for key in cards[0][part]}
              for part in ("stages", "caps", "sweep")}
    fig = Figure(figsize=(15, 7))
    axes = fig.subplots(2, 4)
    panels = [("all", together), *((f"{row} ({kind})", lambda rows, row=row: rows[row]) for row, kind in ROWS.items())]
    for ax, (title, choose) in zip(axes.flat, panels):
        frontier(ax, cards, pooled, choose)
        style(ax, title, "mean response tokens")
    caps_panel(axes[1, 2], pooled["caps"])
    axes[0, 0].set_ylabel("accuracy")
    axes[1, 0].set_ylabel("accuracy")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[1, 3].axis("off")
    axes[1, 3].legend(handles, labels, loc="center", frameon=False)
    fig.tight_layout()
    save_png(fig, path)


def frontier(ax, cards: list[dict], pooled: dict, choose) -> None:
    """One panel: a point for every stage with its 95 % interval over seeds and problems, and the line of merged weights."""
    for stage, rows in pooled["stages"].items():
        mean, low, high = interval([choose(card["stages"][stage]).hits for card in cards])
        bars = None if low is None else [[mean - low], [high - mean]]
        ax.errorbar(choose(rows).length, mean, bars, fmt="o", capsize=2, label=stage.removeprefix("l2s-"))
    if "l2s-merge" in pooled["stages"] and pooled["sweep"]:
        line = [pooled["stages"]["long"], pooled["sweep"][0.25], pooled["stages"]["l2s-merge"], pooled["sweep"][0.75], pooled["stages"]["brief"]]
        ax.plot([choose(rows).length for rows in line], [choose(rows).accuracy for rows in line], ":", color="grey", label="merged, any share")


def caps_panel(ax, caps: dict) -> None:
    """Long, made to answer after a share of its mean length."""
    for row in ROWS:
        ax.plot(list(caps), [rows[row].accuracy for rows in caps.values()], "o-", label=row)
    ax.legend(fontsize=7, frameon=False)
    style(ax, "long, thinking cut at a share of its mean length", "share")


def total_minutes(run: Path) -> float:
    """Wall clock of the two models and all methods, without the sampling that they share."""
    notes = [run / stage / "long2short.json" for stage in STAGES]
    return round(sum(json.loads(note.read_text())["seconds"] for note in notes if note.exists()) / 60, 2)


def report(run: Path) -> None:
    """What python rl.py long2short ends with: the val card and RUN/long2short.png."""
    card = measure(run, "val", CHOICE)
    print_card(card, CHOICE, "val", best_method(card["stages"]) if set(CANDIDATES) & set(card["stages"]) else "")
    picture([card], run / "long2short.png")
    plan.say(f"figure: {run / 'long2short.png'}")


@command
def main() -> None:
    """The command line."""
    args = exam_arguments("Accuracy against response tokens.", Path("results/long2short.json"))
    for run in args.runs:
        need(run, *STAGES)
    stages = ("long", *CANDIDATES)
    chosen = [measure(run, "val", CHOICE, stages, controls=False) for run in args.runs]      # the choice never sees the test split
    best = best_method({stage: {row: sum((c["stages"][stage][row] for c in chosen), Answers()) for row in ROWS} for stage in stages})
    cards = [measure(run, args.split, args.problems) for run in args.runs]
    for card in cards:
        print_card(card, args.problems, args.split, best)
    if args.out:
        settings = [trained(run, "long/long2short.json") for run in args.runs]
        write_results(args.out, "lengths", "python rl.py long2short --run RUN", settings, [total_minutes(run) for run in args.runs],
                      rows_over_seeds(cards, best, args.problems), split=args.split, best=best, exam=exam.VERSION)
        picture(cards, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
