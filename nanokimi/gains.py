"""What RL gained: chat rows of the cold start, after RL, and after shortest rejection sampling, side by side.

    python -m nanokimi.gains runs/nano                                   val split, 100 problems a row
    python -m nanokimi.gains --split test runs/s0 runs/s1 runs/s2        writes results/rl.json from three runs

All rows are asked in chat with thinking, greedy, and scored by the verifiers that RL learns from, partial credit included; tool and eyes
rows count what is wholly right.
"""
from pathlib import Path

import numpy as np
from rich.table import Table

from . import plan
from .checkpoint import finished, need, read_rows
from .engine import engine_of
from .errors import command
from .evaluate import ask_chat, chat_answers, exam_arguments, mean_correct, mean_score, note_reading, over_seeds, trained, write_results
from .kernels import best_device
from .model import load
from .rollout import content_of
from .world import exam

STAGES = ("sft", "rl", "short")                                          # folders of a run
PICTURES = ("caption", "count", "name", "direction", "appear", "order", "ground", "point", "ocr", "chat_picture")
TEXT = ("arithmetic", "scene_text", "tool_text")
POSES = {"illusion": "which grey", "maze": "how many straight steps", "pixels": ("what are the values", "how many pixels"),
         "specks": "how many dark specks", "digits": "what number is written"}           # tool problems by how their question begins
TARGETS = {"rl_visual_gain": ">=0.50", "rl_visual_margin_change": ">=0", "rl_tool_solved": ">=0.70", "rl_saving": ">=0.25",
           "rl_saving_drop": "<=0.01"}


def chat_rows(engine, split, number):
    """{"row": mean score} of one model in chat, with blind twins of the picture rows, tool problems with and without the tool, tokens."""
    rows, lengths, blind = {}, [], []
    for name in PICTURES:
        problems = exam.exam(name, split, number)
        responses = ask_chat(engine, problems)
        rows[name] = mean_score(problems, [content_of(r) for r in responses])
        lengths += [r.written for r in responses]
        blind.append(mean_score(problems, chat_answers(engine, exam.blind(problems))))
    rows["visual"], rows["visual_blind"], rows["visual_tokens"] = (float(np.mean(values)) for values in
                                                                   ([rows[name] for name in PICTURES], blind, lengths))
    for name in TEXT:
        problems = exam.exam(name, split, number)
        rows[name] = mean_score(problems, chat_answers(engine, problems, name in exam.TOOL_ROWS))
    return rows | tool_rows(engine, split, number)


def tool_rows(engine, split, number):
    """Pictures that need the tool: solved with it, and by eye alone."""
    problems, rows = exam.exam("tool_picture", split, number), {}
    for arm, use_tools in (("tool", True), ("eyes", False)):
        answers = chat_answers(engine, problems, use_tools)
        rows[f"{arm}_solved"] = mean_correct(problems, answers)
        for pose, begins in POSES.items():
            some = [i for i, p in enumerate(problems) if p.question.startswith(begins)]
            if some:
                rows[f"{arm}_{pose}"] = mean_correct([problems[i] for i in some], [answers[i] for i in some])
    return rows


def stages(run, split, number):
    """{"sft": rows, "rl": rows, "short": rows} of the stages that the run has."""
    note_reading(run, split, number, "gains")
    there = [folder for folder in STAGES if finished(run / folder)]
    return {folder: chat_rows(engine_of(run, load(run / folder, best_device())), split, number) for folder in there}


def gains(cards):
    """The rows of results/rl.json from the columns of one run."""
    before, after = cards["sft"], cards["rl"]
    rows = {"rl_visual_gain": (after["visual"] - before["visual"]) / (1 - before["visual"]), "rl_visual_before": before["visual"],
            "rl_visual_after": after["visual"],
            "rl_visual_margin_change": (after["visual"] - after["visual_blind"]) - (before["visual"] - before["visual_blind"]),
            "rl_tool_solved": after["tool_solved"], "rl_tool_by_eye": after["eyes_solved"]}
    if "short" in cards:
        rows |= {"rl_saving": 1 - cards["short"]["visual_tokens"] / after["visual_tokens"],
                 "rl_saving_drop": after["visual"] - cards["short"]["visual"]}
    return rows | {f"{column}_{name}": value for column, card in cards.items() for name, value in card.items()}


def print_cards(cards, number, split):
    """The columns beside each other."""
    table = Table(title=f"what RL gained ({split} split, {number} problems a row)", title_justify="left")
    table.add_column("row")
    for column in cards:
        table.add_column(column, justify="right")
    for name in cards["sft"]:
        table.add_row(name, *(f"{card[name]:.3f}" for card in cards.values()))
    plan.console.print(table)


@command
def main():
    """The command line."""
    args = exam_arguments("Compare the stages of runs in chat.", Path("results/rl.json"))
    for run in args.runs:
        need(run, *(STAGES if args.out else ("sft", "rl")))
    cards = [stages(run, args.split, args.problems) for run in args.runs]
    for card in cards:
        print_cards(card, args.problems, args.split)
    if args.out:
        settings = [trained(run, "rl/rl.json") for run in args.runs]
        last = [read_rows(run / "rl" / "metrics.jsonl")[-1] for run in args.runs]
        write_results(args.out, "gains", settings[0]["command"], settings, [round(row["seconds"] / 60, 2) for row in last],
                      over_seeds([gains(card) for card in cards], args.problems, TARGETS), split=args.split,
                      iterations=[row["iteration"] for row in last], exam=exam.VERSION)


if __name__ == "__main__":
    main()
