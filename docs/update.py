"""Refresh what README.md shows from results/*.json: the tables between its markers, the same in README.zh.md, and the picture of the stack.

    python docs/update.py                 tables and the stack
    python docs/update.py runs/s0         also the figures of that run
"""
import json
import re
import shutil
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


def results_table(path):
    """A results file as a Markdown table with its provenance underneath."""
    if not path.exists():
        return f"*(no results/{path.name} yet)*"
    content = json.loads(path.read_text())
    lines = [f"| row | mean over {len(content['seeds'])} seed(s) | sd | target | met |", "|---|---|---|---|---|"]
    order = sorted(content["rows"], key=lambda row: not row["target"])
    for i, row in enumerate(order):
        if not row["target"] and order[i - 1]["target"]:
            lines += ["\n<details><summary>all other rows</summary>\n", "| row | mean | sd | | |", "|---|---|---|---|---|"]
        sd = "" if row["sd"] is None else f"{row['sd']:.3f}"
        lines.append(f"| {row['name']} | {row['mean']:.3f} | {sd} | {row['target'] or ''} | {met(row)} |")
    lines.append("\n</details>")
    asked = statistics.mode(row["problems"] for row in content["rows"] if row["problems"])           # rows pooled over others have more, or null
    minutes = ", ".join(f"{m:g}" for m in content["minutes"])
    lines.append(f"\n`{content['command']}` · seeds {content['seeds']} · {minutes} minutes of training · {asked} problems a row, "
                 f"test split, greedy · {content['machine']} · commit {content['commit']}")
    return "\n".join(lines)


def bands_table(path):
    """Loss and val accuracy that a healthy run shows at several minutes."""
    if not path.exists():
        return ""
    content = json.loads(path.read_text())
    names = list(content["bands"][-1]["val"]) if content["bands"] else []
    span = lambda pair, form: form(pair[0]) if form(pair[0]) == form(pair[1]) else f"{form(pair[0])} to {form(pair[1])}"
    percent, two = (lambda v: f"{100 * v:.0f} %"), (lambda v: f"{v:.2f}")
    lines = ["A healthy run (val split, teacher-forced exact match on 40 problems a row; lowest to highest seed):\n",
             "| minute | loss | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for band in content["bands"]:
        lines.append(f"| {band['minute']} | {span(band['loss'], two)} | " + " | ".join(span(band["val"][n], percent) if n in band["val"] else "" for n in names) + " |")
    return "\n".join(lines)


SPEED = {"train_vs_transformers": "training step, forward and backward, over transformers' with its best expert kernel, each in its better precision",
         "train_tokens_s": "tokens a second of that step", "optimizer_share": "MuonClip's share of a step", "data_share": "share of making the data, CPU seconds",
         "useful_flops_share": "matrix products at this machine's best rate, share of a step's time ([the rest](docs/PROFILE.md))",
         "decode_vs_generate": "greedy decoding, 64 prompts with a picture, 64 tokens, over transformers' generate", "decode_tokens_s": "tokens a second of it",
         "tool_turn_ms": "a tool call that returns a crop, its encoding and prefill, milliseconds", "rollout_overhead": "bookkeeping over the model's time in a rollout",
         "nano_peak_gb": "memory of one training process, GiB"}


def speed_table(path):
    """The rows of results/bench.json that README shows."""
    content = json.loads(path.read_text())
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
    from nanokimi.report import stack_picture
    readme = ROOT / "README.md"
    results = ROOT / "results" / "nano.json"
    text = fill(readme.read_text(), "results", results_table(results))
    text = fill(text, "rl", results_table(ROOT / "results" / "rl.json"))
    text = fill(text, "l2s", results_table(ROOT / "results" / "long2short.json"))
    text = fill(text, "bands", bands_table(results))
    text = fill(text, "bench", speed_table(ROOT / "results" / "bench.json"))
    readme.write_text(text)
    chinese = ROOT / "README.zh.md"
    chinese.write_text(copy_generated(text, chinese.read_text()))
    stack_picture(ROOT / "docs" / "stack.png")
    if (ROOT / "results" / "long2short.png").exists():
        shutil.copy(ROOT / "results" / "long2short.png", ROOT / "docs" / "long2short.png")
    for run in sys.argv[1:2]:
        shutil.copy(Path(run) / "answers.png", ROOT / "docs" / "answers.png")
        for name in ("loss", "accuracy", "load"):
            shutil.copy(Path(run) / f"{name}.png", ROOT / "results" / f"nano_{name}.png")


if __name__ == "__main__":
    main()
