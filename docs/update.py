"""Refresh what is shown of results/*.json: the tables between README.md's markers, the same in README.zh.md, docs/RESULTS.md, and figures.
docs/CLAIMS.md is written by `python -m nanokimi.claims --docs`.

    python docs/update.py                 tables and the picture of the stack
    python docs/update.py runs/s0         also the figures of that run
"""
import argparse
import json
import re
import shutil
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def provenance(content):
    """The line under a table: command, seeds, machine, commit."""
    asked = statistics.mode(row["problems"] for row in content["rows"] if row["problems"])           # rows pooled over others have more, or null
    minutes = ", ".join(f"{m:g}" for m in content["minutes"])
    return (f"`{content['command']}` · seeds {content['seeds']} · {minutes} minutes of training · {asked} problems a row, "
            f"{content['split']} split, greedy · exam {content['exam']} · {content['machine']} · commit {content['commit']}")


def rows_table(content, wanted):
    """The rows of a results file that `wanted` takes, with mean, spread and target."""
    lines = [f"| row | mean over {len(content['seeds'])} seed(s) | sd | target | met |", "|---|---|---|---|---|"]
    for row in filter(wanted, content["rows"]):
        sd = "" if row["sd"] is None else f"{row['sd']:.3f}"
        between = f" ({row['low']:.3f} to {row['high']:.3f})" if row.get("low") is not None else ""
        lines.append(f"| {row['name']} | {row['mean']:.3f}{between} | {sd} | {row['target'] or ''} | {met(row)} |")
    return "\n".join(lines)


def targets_table(content):
    """What README shows: the rows that have a target, and where they come from."""
    return rows_table(content, lambda row: row["target"]) + "\n\n" + provenance(content)


def grid(content, columns, names):
    """A table of means, a line for each of `names`. columns: {heading: pattern of a row's name, with {} where the line's name stands}."""
    mean = {row["name"]: f"{row['mean']:.3f}" for row in content["rows"]}
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return "\n".join(lines + [f"| {name} | " + " | ".join(mean.get(form.format(name), "") for form in columns.values()) + " |" for name in names])


RL_ROWS = ("caption", "count", "name", "direction", "appear", "order", "ground", "point", "ocr", "chat_picture", "visual", "visual_blind",
           "visual_tokens", "arithmetic", "scene_text", "tool_text", "tool_solved", "tool_illusion", "tool_maze", "tool_pixels", "tool_specks", "tool_digits")


def rl_table(content):
    """Every ability before and after, then the targets."""
    stages = {"cold start": "sft_{}", "RL": "rl_{}", "shortest": "short_{}"}
    return f"{grid(content, stages, RL_ROWS)}\n\n{targets_table(content)}"


def l2s_table(content):
    """Accuracy and tokens of every model, then the targets."""
    asked = {name: f"{{}}_{name}" for name in ("acc", "tokens", "arithmetic", "scene_text", "chat_picture", "count", "direction")}
    models = ("long", "brief", *(f"l2s-{method}" for method in ("merge", "shortest", "dpo", "rl", "toggle", "rigid")))
    return f"{grid(content, asked, models)}\n\n{targets_table(content)}"


RESULTS_HEAD = """# Every row of results/nano.json, nano60.json, rl.json and long2short.json

Written by `python docs/update.py`; do not edit. README shows the rows that have targets. What the names mean: rows of `nano` (the
steps that `python train.py` chose on two cores with AMX) and `nano60` (`--minutes 60` without fast bf16; its targets are those of twenty minutes)
are those of `nanokimi/evaluate.py`, rows of `rl` those of `nanokimi/gains.py`, rows of `long2short` those of
`nanokimi/lengths.py`; `*_blind` is a row with the pictures of other problems, `*_low` and `*_high`, or what stands in brackets, are the ends of a 95 % interval.
"""


def all_rows(contents):
    """docs/RESULTS.md."""
    return "\n".join([RESULTS_HEAD, *(f"## {name}\n\n{rows_table(content, bool)}\n\n{provenance(content)}\n"
                                     for name, content in contents.items())])


def bands_table(content):
    """Loss and val accuracy that a healthy run shows on its way."""
    names = list(content["bands"][-1]["val"])
    span = lambda pair, form: form(pair[0]) if form(pair[0]) == form(pair[1]) else f"{form(pair[0])} to {form(pair[1])}"
    percent, two = (lambda v: f"{100 * v:.0f} %"), (lambda v: f"{v:.2f}")
    lines = ["A healthy run (val split, teacher-forced exact match on 40 problems a row; lowest to highest seed):\n",
             "| step | loss | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for band in content["bands"]:
        lines.append(f"| {span(band['steps'], str)} | {span(band['loss'], two)} | " + " | ".join(span(band["val"][n], percent) if n in band["val"] else "" for n in names) + " |")
    return "\n".join(lines)


SPEED = {"train_vs_transformers": "training step, forward and backward, over transformers' with its best expert kernel, each in its better precision",
         "train_tokens_s": "tokens a second of that step", "optimizer_share": "MuonClip's share of a step", "data_share": "share of making the data, CPU seconds",
         "useful_flops_share": "matrix products at this machine's best rate, share of a step's time ([the rest](docs/PROFILE.md))",
         "decode_vs_generate": "greedy decoding, 64 prompts with a picture, 64 tokens, over transformers' generate", "decode_tokens_s": "tokens a second of it",
         "tool_turn_ms": "a tool call that returns a crop, its encoding and prefill, milliseconds", "rollout_overhead": "bookkeeping over the model's time in a rollout",
         "nano_peak_gb": "memory of one training process, GiB"}


def speed_table(content):
    """The rows of results/bench.json that README shows."""
    rows = {row["name"]: row for row in content["rows"]}
    lines = ["| row | median | lowest | highest | target | met |", "|---|---|---|---|---|---|"]
    for name, words in SPEED.items():
        row, form = rows[name], "{:,.0f}" if rows[name]["mean"] > 100 else "{:.2f}"
        lines.append(f"| {words} (`{name}`) | " + " | ".join(form.format(v) for v in (row["mean"], min(row["values"]), max(row["values"]))) +
                     f" | {row['target'] or ''} | {met(row)} |")
    return "\n".join([*lines, f"\n`{content['command']}` · {content['machine']} · commit {content['commit']}"])


def met(row):
    """Whether the mean meets its target: yes, no, or nothing where there is none."""
    if not row["target"]:
        return ""
    value = float(row["target"].lstrip("<>="))
    return "yes" if (row["mean"] >= value if row["target"].startswith(">") else row["mean"] <= value) else "**no**"


def fill(text, name, content):
    """Replace what stands between the markers of `name`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.S)
    assert pattern.search(text), f"README has no markers for {name}"
    return pattern.sub(lambda m: m[1] + content + m[2], text)


def copy_generated(source, text):
    """What stands between the markers of `source`, word for word into `text`: the translation shows the same tables."""
    for name, content in re.findall(r"<!-- (\w+) -->\n(.*?)\n<!-- /\1 -->", source, re.S):
        text = fill(text, name, content)
    return text


def main():
    parser = argparse.ArgumentParser(description="Refresh the tables and figures of README.md from results/*.json.")
    parser.add_argument("run", nargs="?", type=Path, help="also take the figures of this run")
    run = parser.parse_args().run
    from nanokimi.claims import overview
    from nanokimi.report import stack_picture
    nano, hour, rl, l2s, bench = (json.loads((ROOT / "results" / f"{name}.json").read_text())
                                 for name in ("nano", "nano60", "rl", "long2short", "bench"))
    text = (ROOT / "README.md").read_text("utf-8")
    for name, table in (("results", targets_table(nano)), ("bands", bands_table(nano)), ("rl", rl_table(rl)), ("l2s", l2s_table(l2s)),
                        ("claims", "\n".join(overview(ROOT / "results", "docs/CLAIMS.md"))), ("bench", speed_table(bench))):
        text = fill(text, name, table)
    (ROOT / "README.md").write_text(text, "utf-8")
    chinese = ROOT / "README.zh.md"
    chinese.write_text(copy_generated(text, chinese.read_text("utf-8")), "utf-8")
    (ROOT / "docs" / "RESULTS.md").write_text(all_rows({"nano": nano, "nano60": hour, "rl": rl, "long2short": l2s}), "utf-8")
    stack_picture(ROOT / "docs" / "stack.png")
    if run:
        shutil.copy(run / "answers.png", ROOT / "docs" / "answers.png")
        for name in ("loss", "accuracy", "load"):
            shutil.copy(run / f"{name}.png", ROOT / "results" / f"nano_{name}.png")


if __name__ == "__main__":
    main()
