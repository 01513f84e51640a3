"""The ledger: every claim of nanokimi/ledger.py as an experiment, arm by arm and seed by seed, and docs/CLAIMS.md from results/*.json.

    python -m nanokimi.claims                          all that is not done yet, then results/claims.json and docs/CLAIMS.md
    python -m nanokimi.claims optimizer fusion         these claims
    python -m nanokimi.claims --docs                   only write docs/CLAIMS.md again
    python -m nanokimi.claims --preset micro --root /tmp/m --out /tmp/m/claims.json      to see that everything runs; learns nothing

Arms live in runs/claims/CLAIM/ARM-SEED, each a process with one thread, as many at a time as there are cores. Ctrl-C stops them after their
step; the same command goes on. Arms that begin from a finished run begin from the released checkpoints, or from --base. Every started arm is
a line of results/claims_runs.jsonl.
"""
import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from . import data, plan
from .arms import Settings, preset_of
from .checkpoint import RELEASED, finished, read_json, read_rows, write_json
from .errors import MOST_SEED, BadInput, command, number
from .intervals import bootstrapped, interval, share_interval
from .kernels import best_device
from .ledger import BY_NAME, CLAIMS, METRICS
from .tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)               # results hold what is finished of these, whichever were asked for last
SMALL = {"steps": 6, "sft_steps": 3, "documents": 24}                    # --preset micro
SMALL_RL = {"iterations": 2, "problems": 4, "pool": 24, "k": 2, "max-new": 12}


# ---- verdicts --------------------------------------------------------------------------------------------------------------------------

def holds(expect, low, high):
    """Whether the whole interval lies where the claim wants it: True, False, or None if nothing is expected."""
    if not expect:
        return None
    sign, bound = expect.split()
    return low is not None and (low > float(bound) if sign == ">" else high < float(bound))


def verdict(answers):
    """reproduced: every comparison that expects a side is there; partly: some; not at this scale: none; no verdict: none expects a side;
    not run yet: there is none."""
    if not answers:
        return "not run yet"
    answers = [answer for answer in answers if answer is not None]
    if not answers:
        return "no verdict"
    return "reproduced" if all(answers) else "partly" if any(answers) else "not at this scale"


# ---- arms ------------------------------------------------------------------------------------------------------------------------------

def settings_of(claim, arm, preset, rate=None):
    """Settings of an arm: the defaults, what the claim's arms share, what this one changes, the chosen rate."""
    s = Settings(**({"preset": preset} | claim.shared | claim.arms[arm]))
    if rate:
        s = replace(s, rl=s.rl | {"lr": rate}) if s.rl else replace(s, lr=rate)
    if preset == "micro":
        s = replace(s, **{name: min(value, getattr(s, name)) for name, value in SMALL.items()}, rl=s.rl and s.rl | SMALL_RL)
    return s


def wanted(claim):
    """[[measure, row]] that the claim's comparisons need."""
    names = {compare.metric for compare in claim.compares} | ({claim.choose_by} - {""})
    return sorted({(METRICS[name][0], row) for name in names for row in METRICS[name][1]})


def folder_of(args, claim, arm, seed, rate=None):
    """Where an arm lives."""
    return args.root / claim.name / f"{arm.replace(' ', '').replace(',', '-').replace('%', 'pct')}{f'-lr{rate:g}' if rate else ''}-{seed}"


def prepare(args, claim, arm, seed, rate=None):
    """The arm's folder with its settings and what it begins from; returns it. One that answered other questions is asked again. BadInput if it
    was trained otherwise."""
    run, s = folder_of(args, claim, arm, seed, rate), settings_of(claim, arm, args.preset, rate)
    if run.exists() and not any((run / name).exists() for name in ("log.txt", "test.json", "val.json")):
        shutil.rmtree(run)                                               # prepared, but its turn never came
    trained = {"settings": asdict(s), "seed": seed, "precision": args.precision, "begins": "" if s.steps else args.base or "results/checkpoints"}
    note = json.loads(json.dumps(trained | {"problems": args.problems or claim.problems, "wanted": wanted(claim)}))
    kept = kept_note(run) if (run / "arm.json").exists() else note
    if any(kept[name] != note[name] for name in trained):
        raise BadInput(f"{run} was started with other settings: delete it, or give another --root.")
    if kept != note:
        (run / "val.json").unlink(missing_ok=True), (run / "test.json").unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    source = begins_from(args, s, seed)
    for part in ["tokenizer", *(["pretrain" if s.sft_steps else "sft"] if not s.steps else [])]:
        if not (run / part).exists():
            shutil.rmtree(run / "partial", ignore_errors=True)
            shutil.copytree(source / part, run / "partial")
            os.replace(run / "partial", run / part)
    write_json(run / "arm.json", note)
    return run


def kept_note(run):
    """What an arm was begun with; one that is older than a setting had its default."""
    note = read_json(run / "arm.json", "settings", "seed", "precision", "begins")
    return note | {"settings": asdict(Settings(**note["settings"]))}


def begins_from(args, s, seed):
    """The folder whose tokenizer (and stage) an arm takes."""
    if s.steps:
        return args.root
    if s.start:
        name, arm = s.start.split("/")
        return folder_of(args, BY_NAME[name], arm, seed)
    base = Path(args.base.replace("{seed}", str(seed))) if args.base else RELEASED
    if not finished(base / "sft"):
        raise BadInput(f"{base} is no finished run: python train.py --seed {seed} --run {base} first, or give --base.")
    return base


def run_all(args, runs, split):
    """Trains and asks these arms, args.jobs at a time; those that have an answer are left alone. Ctrl-C: all save, exit 130."""
    waiting, running = [run for run in dict.fromkeys(runs) if not (run / f"{split}.json").exists()], {}
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                begin(args, running, waiting.pop(0), split)
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                end(args, process, *running.pop(process))
    except KeyboardInterrupt:
        for process in running:
            if os.name != "nt":                                          # on Windows the console's Ctrl-C has reached them already
                process.send_signal(signal.SIGINT)
        for process, (run, started) in running.items():
            process.wait()
            note(args, "stopped", run, seconds=time.time() - started)
        plan.say("stopped. The same command goes on from here.")
        sys.exit(130)


def begin(args, running, run, split):
    """Starts an arm in a session of its own: a terminal's Ctrl-C reaches it through us, once."""
    program, anew = [sys.executable, "-m", "nanokimi.arms", str(run.resolve()), split], not (run / "log.txt").exists()
    with open(run / "log.txt", "a") as log:
        process = subprocess.Popen(program, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    running[process] = run, time.time()
    note(args, "started", run, anew=anew, settings=json.loads((run / "arm.json").read_text())["settings"])
    plan.say(f"{run} ...")


def end(args, process, run, started):
    """Notes how an arm ended; one that failed does not stop the others."""
    done = process.returncode == 0
    note(args, "finished" if done else "failed", run, seconds=time.time() - started)
    how = "done" if done else f"FAILED, see {run / 'log.txt'}"
    plan.say(f"{run}: {how} after {(time.time() - started) / 60:.1f} min")


def note(args, event, run, **more):
    """A line of claims_runs.jsonl: nothing that was started is left out."""
    name = run.relative_to(args.root).as_posix()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with open(args.out.with_name(f"{args.out.stem}_runs.jsonl"), "a") as file:
        file.write(json.dumps({"event": event, "run": name, "time": round(time.time()), "commit": plan.commit(), **more}) + "\n")


def run_claims(args, claims):
    """All arms and seeds of these claims; before them what some begin from, and the rates, on val with the first seed."""
    pairs = [(claim, arm) for claim in claims for arm in claim.arms]
    starts = {settings_of(claim, arm, args.preset).start for claim, arm in pairs} - {""}
    starts = [(BY_NAME[name], arm) for name, arm in (start.split("/") for start in sorted(starts))]
    run_all(args, [prepare(args, claim, arm, seed) for claim, arm in starts for seed in args.seeds], "test")
    run_all(args, [prepare(args, claim, arm, SEEDS[0], rate) for claim, arm in pairs for rate in claim.rates], "val")
    run_all(args, [prepare(args, claim, arm, seed, best_rate(args, claim, arm)) for claim, arm in pairs for seed in args.seeds], "test")


def best_rate(args, claim, arm):
    """The rate with the best val mean (the smallest loss) with the first of SEEDS, whichever are asked for; None where the claim tries none
    or has not tried yet."""
    runs = {rate: folder_of(args, claim, arm, SEEDS[0], rate) for rate in claim.rates}
    tried = {rate: np.mean(answers(run, claim.choose_by, "val")) for rate, run in runs.items() if (run / "val.json").exists()}
    return (min if METRICS[claim.choose_by][0] == "nats" else max)(tried, key=tried.get) if tried else None


# ---- results ---------------------------------------------------------------------------------------------------------------------------

def answers(run, metric, split="test"):
    """(problems,) values of a metric, its rows one after the other."""
    content, (kind, rows) = json.loads((run / f"{split}.json").read_text()), METRICS[metric]
    return np.concatenate([content[f"{kind} {row}"] for row in rows])


EMPTY = {"minutes": {}, "longest": {}, "begins": {}, "ran": {}, "settings": {}, "rates": {}, "rows": [], "differences": []}       # of a results file


def measured(args, claim, lines):
    """What finished arms tell of a claim, as parts of a results file. lines: of claims_runs.jsonl."""
    rates = {arm: best_rate(args, claim, arm) for arm in claim.arms}
    folders = {arm: {seed: folder_of(args, claim, arm, seed, rates[arm]) for seed in sorted({*SEEDS, *args.seeds})} for arm in claim.arms}
    finished = {arm: {seed: run for seed, run in runs.items() if answered(args, claim, arm, run, rates[arm])} for arm, runs in folders.items()}
    done = [run for runs in finished.values() for run in runs.values()]
    seconds = [s for run, s in seconds_taken(lines, claim.name).items() if (args.root / run).is_dir()]           # not of older settings
    of_claim = {"rates": {arm: rate for arm, rate in rates.items() if rate}, "minutes": round(sum(seconds) / 60, 1),
                "longest": round(max(seconds, default=0) / 60, 1),
                "begins": "; ".join(sorted({kept_note(run)["begins"] for run in done} - {""})), "ran": origins(done),
                "settings": {"shared": claim.shared, "arms": claim.arms} if done else {}}
    return {"rows": rows_of(claim, finished), "differences": [d for compare in claim.compares if (d := difference(claim, compare, finished))],
            **{name: {claim.name: value} for name, value in of_claim.items() if value}}


def answered(args, claim, arm, run, rate):
    """Whether an arm has its answers, from a training with the settings that the ledger has now."""
    settings = json.loads(json.dumps(asdict(settings_of(claim, arm, args.preset, rate))))
    return (run / "test.json").exists() and kept_note(run)["settings"] == settings


def rows_of(claim, finished):
    """Mean of every metric and arm, over seeds. finished: {arm: {seed: folder}}."""
    rows = []
    for metric in dict.fromkeys(compare.metric for compare in claim.compares):
        for arm, runs in finished.items():
            if runs:
                values = [answers(run, metric) for run in runs.values()]
                means = [float(v.mean()) for v in values]
                rows.append({"name": f"{claim.name}/{arm}/{metric}", "mean": float(np.mean(means)), "values": means, "target": None,
                             "sd": float(np.std(means, ddof=1)) if len(means) > 1 else None, "problems": len(values[0])})
    return rows


def difference(claim, compare, finished):
    """A comparison as a row of "differences", paired by seed and problem; None where a side is missing."""
    one, other = finished[compare.arm], finished[compare.against]
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return None
    gaps = np.stack([answers(one[seed], compare.metric) - answers(other[seed], compare.metric) for seed in seeds])      # (S, P)
    mean, low, high = interval(gaps)
    return {"claim": claim.name, **asdict(compare), "difference": mean, "low": low, "high": high, "seeds": seeds, "problems": gaps.shape[1]}


def seconds_taken(lines, name):
    """Counter {claim/arm-seed: seconds} of a claim. One that was stopped adds its parts; one begun again, from nothing or with other
    settings, counts anew."""
    seconds, settings = Counter(), {}
    for line in lines:
        run = line["run"]
        if run.startswith(f"{name}/"):
            if line.get("anew") or settings.get(run) != line.get("settings", settings.get(run)):
                settings[run], seconds[run] = line["settings"], 0
            seconds[run] += line.get("seconds", 0)
    return seconds


def covers(claim, gaps, others):
    """Whether these differences hold every comparison of the claim that `others` hold, with at least its seeds."""
    seeds = {(d["metric"], d["arm"], d["against"]): set(d["seeds"]) for d in gaps}
    wanted = {(compare.metric, compare.arm, compare.against) for compare in claim.compares}
    return bool(gaps) and all(seeds.get(key, set()) >= set(d["seeds"]) for d in others
                              if d["claim"] == claim.name and (key := (d["metric"], d["arm"], d["against"])) in wanted)


def published(kept, claim):
    """What a results file holds of a claim."""
    out = {"rows": [row for row in kept["rows"] if row["name"].startswith(f"{claim.name}/")],
           "differences": [gap for gap in kept["differences"] if gap["claim"] == claim.name]}
    return out | {name: {claim.name: part[claim.name]} for name, part in kept.items() if isinstance(part, dict) and claim.name in part}


def write_results(args):
    """results/claims.json from all arms that are finished; where other folders knew more, what is published stays."""
    notes = args.out.with_name(f"{args.out.stem}_runs.jsonl")
    lines = read_rows(notes) if notes.exists() else []
    kept, out = EMPTY | (read_json(args.out) if args.out.exists() else {}), dict(EMPTY)
    for claim in CLAIMS:
        parts = measured(args, claim, lines)
        if not covers(claim, parts["differences"], kept["differences"]):
            if parts["differences"]:
                plan.say(f"{claim.name}: what is published has comparisons or seeds that are not here, so it stays.")
            parts = published(kept, claim)
        for name, part in parts.items():
            out[name] = out[name] | part if isinstance(part, dict) else out[name] + part
    write_json(args.out, {"experiment": "claims", "command": "python -m nanokimi.claims", "threads": 1,
                          "seeds": sorted({seed for gap in out["differences"] for seed in gap["seeds"]}), **out})


def origins(done):
    """Machine, precision and commit of finished arms, several where seeds were trained on several machines; "" for none."""
    notes = [json.loads((run / "test.json").read_text()) for run in done]
    several = lambda name: "; ".join(sorted({str(note[name]) for note in notes}))
    return f"{several('machine')}; {several('precision')}; commit {several('commit').replace('; ', ', ')}" if notes else ""


# ---- docs/CLAIMS.md --------------------------------------------------------------------------------------------------------------------

HEAD = """# Claims of the papers, asked again at this size

Written by `python -m nanokimi.claims --docs` from `results/*.json` and the table `nanokimi/ledger.py`; do not edit. Reports are of models a
million times larger: a claim that does not show here is not refuted, and one that does is not proved.

**How to read it.** A difference is the first arm less the second, paired by seed and by problem (test split), with its 95 % interval over
seeds and problems (`nanokimi/intervals.py`: crossed random effects, Student's t). Differences of rows that `results/nano.json` and `rl.json` keep
without their answers count as unpaired, which is wider; gains in `long2short.json` are paired there, and stand against 0. What would reproduce a
claim was written down before the arms ran, as `expects`. **reproduced**: every such interval lies wholly on the claim's side; **partly**:
some do; **not at this scale**: none does (the interval may hold 0, or lie on the other side: look). **no verdict**: found, but nothing that
would decide it. Without an interval there is no yes. With one seed an interval knows nothing of luck between runs. Settings are those of
`nanokimi/arms.py` and options of `rl.py`; steps 0: begins from a finished run. Where every seed begins from the same one, the interval knows of luck in
what followed, not in that run's pre-training.
"""


def known_difference(known, folder):
    """A Known as a row like those of "differences"; None where the results file has no such rows."""
    path = folder / f"{known.file}.json"
    content = json.loads(path.read_text()) if path.exists() else {"rows": []}
    rows = {row["name"]: row for row in content["rows"]}
    if known.row not in rows or known.against and known.against not in rows:
        return None
    row, bounds = rows[known.row], [f"{known.row}_{end}" for end in ("low", "high")]
    if "low" in row and not known.against:                               # that file had the answers
        mean, low, high = row["mean"], row["low"], row["high"]
    elif known.against:
        mean, low, high = share_interval(row["values"], rows[known.against]["values"], row["problems"])
    elif set(bounds) <= set(rows):
        mean, low, high = bootstrapped(row, *(rows[name]["values"] for name in bounds))
    else:
        mean, low, high = interval(np.array(row["values"])[:, None])     # one number a training
    return {"metric": f"`{known.file}.json`", "arm": known.row, "against": known.against or "0", "expect": known.expect, "difference": mean,
            "low": low, "high": high, "seeds": content["seeds"], "problems": row["problems"], "command": content["command"]}


def found(claim, folder):
    """All differences of a claim that results/*.json hold."""
    path = folder / "claims.json"
    content = json.loads(path.read_text()) if path.exists() else {"differences": []}
    table = {(d["metric"], d["arm"], d["against"]): d for d in content["differences"] if d["claim"] == claim.name}
    own = [table[key] | {"command": f"python -m nanokimi.claims {claim.name}", "expect": compare.expect}
           for compare in claim.compares if (key := (compare.metric, compare.arm, compare.against)) in table]
    return [d for known in claim.known if (d := known_difference(known, folder))] + own


def judged(claim, folder):
    """(verdict with what limits it, differences)."""
    gaps = found(claim, folder)
    word = verdict([holds(d["expect"], d["low"], d["high"]) for d in gaps])
    missing, fewest = len(claim.known) + len(claim.compares) - len(gaps), min((len(d["seeds"]) for d in gaps), default=0)
    limits = [f"{missing} of {missing + len(gaps)} comparisons not run yet"] * bool(missing and gaps) + ["one seed"] * (fewest == 1)
    return f"**{word}{' so far' if missing and word != 'not run yet' else ''}**" + (f" ({', '.join(limits)})" if limits else ""), gaps


def shown(d):
    """A difference and its interval as two cells of a table."""
    return f"{d['difference']:+.3f} | " + ("none" if d["low"] is None else f"{d['low']:+.3f} to {d['high']:+.3f}")


def line_of(d):
    """A difference as a row of a table."""
    answer = {None: "", True: "yes", False: "no"}[holds(d["expect"], d["low"], d["high"])]
    return f"| {d['metric']} | {d['arm']} | {d['against']} | {shown(d)} | {d['expect']} | {answer} | {len(d['seeds'])} x {d['problems']} |"


def overview(folder, page=""):
    """A line a claim: its verdict, and the first of its comparisons that expects a side. page: where the claims have their sections."""
    lines = ["| claim | source | verdict | first comparison | difference | 95 % | expects |", "|---" * 7 + "|"]
    for claim in CLAIMS:
        word, gaps = judged(claim, folder)
        first = next((d for d in gaps if d["expect"]), None)
        cells = f"{first['metric']}: {first['arm']} less {first['against']} | {shown(first)} | {first['expect']}" if first else " | | |"
        lines.append(f"| [{claim.says}]({page}#{anchor(claim.says)}) | {claim.source} | {word} | {cells} |")
    return lines


def in_words(settings, known):
    """Settings for a reader: `name value`, of a dictionary what `known` has not already."""
    words = []
    for name, value in settings.items():
        if isinstance(value, dict):
            new = {k: v for k, v in value.items() if known.get(name, {}).get(k) != v}
            words.append(f"{name} ({', '.join(f'{k} {v}' for k, v in new.items()) or 'as all' if value else 'none'})")
        else:
            words.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
    return ", ".join(words)


def section(claim, folder, content):
    """One claim of docs/CLAIMS.md."""
    word, gaps = judged(claim, folder)
    lines = [f"## {claim.says}", "", f"`{claim.name}` · {claim.source} · {word}", "", f"- They report: {claim.reported}.",
             f"- Here: {claim.experiment}."]
    if claim.arms:
        now = {"shared": claim.shared, "arms": claim.arms}
        ran = content.get("settings", {}).get(claim.name, now)           # of the numbers below
        changed = "; ".join(f"**{arm}** {in_words(changes, ran['shared']) or '(nothing changed)'}" for arm, changes in ran["arms"].items())
        lines += [f"- All arms: {in_words(ran['shared'], {}) or 'the defaults of `nanokimi/arms.py`'}. Arms: {changed}."]
        lines += ["- **The ledger has other settings by now, and the numbers below are older**: the command begins anew."] * (ran != json.loads(json.dumps(now)))
        chosen = in_words(content.get("rates", {}).get(claim.name, {}), {}) or "not yet"
        tried = ", ".join(f"{rate:g}" for rate in claim.rates)
        lines += [f"- Learning rates tried: {tried}; chosen on val: {chosen}."] if claim.rates else []
        begins = content.get("begins", {}).get(claim.name)
        lines += [f"- Arms with steps 0 begin from `{begins}`."] if begins else []
        longest = content.get("longest", {}).get(claim.name)
        took = f"About {claim.minutes:g} minutes of one core an arm and seed, estimated"
        if longest:
            took = f"At most {longest:g} minutes an arm and seed, measured, each a process with one thread beside others"
        lines += [f"- {took}: `python -m nanokimi.claims {claim.name}`."]
        where = content.get("ran", {}).get(claim.name)
        lines += [f"- Ran on {where}."] if where else []
    commands = dict.fromkeys(d["command"] for d in gaps if not d["command"].startswith("python -m nanokimi.claims"))
    lines += [f"- Numbers of `{command}`." for command in commands] + [""]
    if gaps:
        head = "| metric | arm | against | difference | 95 % | expects | there | seeds x problems |"
        lines += [head, "|---" * 8 + "|", *map(line_of, gaps), ""]
    return lines


def write_docs(folder, path):
    """docs/CLAIMS.md from the results in `folder`."""
    source = folder / "claims.json"
    content = json.loads(source.read_text()) if source.exists() else {}
    lines = [HEAD, *overview(folder), ""]
    for claim in CLAIMS:
        lines += section(claim, folder, content)
    lines += ["Every arm ran on one thread, RL in fp32 but for Newton-Schulz. Every started one: `results/claims_runs.jsonl`."]
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def anchor(title):
    """A code host's link to a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


# ---- the command -----------------------------------------------------------------------------------------------------------------------

def arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description="Ask the papers' claims again, arm by arm and seed by seed.")
    add = parser.add_argument
    add("claims", nargs="*", help=f"which (default: all that have arms): {', '.join(c.name for c in CLAIMS if c.arms)}")
    add("--seeds", type=number(int, 0, MOST_SEED), nargs="+", default=list(SEEDS))
    add("--base", help="finished runs of train.py for arms that begin from one, {seed} is filled in (default: the released checkpoints)")
    add("--root", type=Path, default=Path("runs/claims"), help="where arms live")
    add("--out", type=Path, default=ROOT / "results" / "claims.json")
    add("--problems", type=number(int, 2), help="a row of the exam (default: as the ledger says)")
    add("--jobs", type=number(int, 1), default=2 if best_device() == "cuda" else plan.cores(),
        help="arms at a time, one thread each (default: as many as cores; 2 on a GPU)")
    add("--preset", choices=["nano", "micro"], default="nano", help="micro: to see that everything runs")
    add("--docs", action="store_true", help="only write docs/CLAIMS.md")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    ours = (ROOT / "results" / "claims.json", ROOT / "runs" / "claims")
    look = "--preset micro learns nothing" if args.preset != "nano" else "--problems is for a look" if args.problems else ""
    if look and not args.docs and (args.out == ours[0] or args.root.resolve() == ours[1]):
        parser.error(f"{look}, so its numbers are not published: give --out and --root")
    unknown = [name for name in args.claims if name not in BY_NAME or not BY_NAME[name].arms]
    if unknown:
        parser.error(f"no claim with arms is called {unknown[0]}")
    return args


def settle(args):
    """The ledger's tokenizer and precision, made once: all arms share them."""
    preset, path = preset_of(Settings(preset=args.preset)), args.root / "ledger.json"
    args.root.mkdir(parents=True, exist_ok=True)
    if not (args.root / "tokenizer" / "tokenizer.tiktoken").exists():
        Tokenizer.train(data.corpus(preset.corpus), preset.model.language.vocab, preset.model.vision.patch).save(args.root / "tokenizer")
    if not path.exists():
        write_json(path, {"precision": plan.faster_precision()})
    args.precision = json.loads(path.read_text())["precision"]


@command
def main(argv=None):
    """Runs, collects, writes."""
    args = arguments(argv)
    if not args.docs:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with plan.hold(args.root):
            settle(args)
            try:
                run_claims(args, [BY_NAME[name] for name in args.claims] or [claim for claim in CLAIMS if claim.arms])
            finally:                                                     # stopped or not: what is finished counts
                write_results(args)
    if args.out.parent == ROOT / "results":
        write_docs(args.out.parent, ROOT / "docs" / "CLAIMS.md")


if __name__ == "__main__":
    main()
