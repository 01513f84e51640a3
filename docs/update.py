"""Refresh what README.md shows from results/*.json: the tables between its markers, the same in README.zh.md, and the picture of the stack.

    python docs/update.py                 tables and the stack
    python docs/update.py runs/s0         also the figures of that run
"""
import json
import re
import shutil
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
    minutes = ", ".join(f"{m:g}" for m in content["minutes"])
    lines.append(f"\n`{content['command']}` · seeds {content['seeds']} · {minutes} minutes of training · {content['rows'][0]['problems']} problems a row, "
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


def met(row):
    """Whether the mean meets its target: yes, no, or nothing where there is none."""
    if not row["target"]:
        return ""
    sign, value = row["target"][:2], float(row["target"][2:])
    return "yes" if (row["mean"] >= value if sign == ">=" else row["mean"] <= value) else "**no**"


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
