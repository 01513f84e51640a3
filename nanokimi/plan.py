"""Around the training loop: settings that a run keeps, how many steps fit the minutes, the log, Ctrl-C."""
import copy
import json
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import checkpoint, data
from .checkpoint import read_json, write_json
from .config import PRESETS
from .errors import BadInput, second
from .kernels import EXPERTS, best_device, experts_grouped, faster_dtype
from .muon import MuonClip, qk_clip

console = Console(stderr=False, highlight=False, emoji=False)          # rich imports its emoji at the first line: a signal may come by then
PRECISIONS = ("bf16-mixed", "32-true")
SFT_STEP = 0.75                 # time of a cold start's step over that of a pre-training step (measured: nano, in bf16 and in fp32)


def say(text):
    """Lines for people, as they are: brackets are no markup, and a terminal wraps them itself."""
    console.print(text, markup=False, soft_wrap=True)


def cores():
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine():
    """One line about the computer, for results."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name)
    gpu = f" and {torch.cuda.get_device_name()}" if best_device() == "cuda" else ""
    return f"{name}{gpu}, {cores()} cores, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"


def commit():
    """The repository's commit (with -dirty where its Python was changed since; results that a run writes do not count), or None outside of
    one and without git."""
    if not shutil.which("git"):
        return None
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent)
    name, changed = git("describe", "--always").stdout.strip(), git("diff", "--quiet", "HEAD", "--", ":/*.py").returncode == 1
    return f"{name}-dirty" if name and changed else name or None


# ---- settings ----------------------------------------------------------------------------------------------------------------------

def settle(run, args):
    """The run's settings: written on the first start, read ever after. BadInput if the command line contradicts them; cores and processes may
    be others than at the start."""
    path = run / "run.json"
    given = {"preset": args.preset, "seed": args.seed, "minutes": args.minutes, "steps": args.steps, "documents": args.documents,
             "precision": None if args.precision == "auto" else args.precision, "compile": args.compile or None}
    if not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        precision, threads = faster_precision() if args.precision == "auto" else args.precision, args.threads or cores()
        write_json(path, {**given, "minutes": args.minutes or PRESETS[args.preset].minutes, "precision": precision, "compile": args.compile,
                          "threads": threads, "machine": machine(), "commit": commit(),
                          "devices": args.devices or default_devices(threads), "command": " ".join(["python", *sys.argv]),
                          "started": time.time()})
    settings = {"compile": False, "documents": None}                     # an older run may not know them
    settings |= read_json(path, "preset", "seed", "minutes", "steps", "devices", "precision", "threads", "commit")
    check_settings(path, settings)
    for name, value in given.items():
        if value is not None and settings[name] != value:
            remedy = f"give --{name} {settings[name]}" if settings[name] else f"leave --{name} away"
            raise BadInput(f"{run} was started with {name} {settings[name]}, not {value}: {remedy}, or give another --run.")
    now = {"commit": commit(), "devices": args.devices or settings["devices"],           # any number of processes: the shards stay the same
           "threads": args.threads or settings["threads"]}
    for name, value in now.items():
        if settings[name] != value and "LOCAL_RANK" not in os.environ:                   # said once, not by every process
            say(f"note: {run} was started with {name} {settings[name]}, this is {value}: the rest may not be bit-identical")
    return settings | {"devices": now["devices"], "threads": now["threads"]}


def check_settings(path, settings):
    """BadInput where a run.json holds something else than `settle` writes, or --compile what this machine cannot do."""
    count = lambda value, least=1: type(value) is int and value >= least
    fine = {"preset": lambda x: x in PRESETS, "seed": lambda x: count(x, 0), "minutes": lambda x: type(x) in (int, float) and x > 0,
            "devices": count, "threads": count, "precision": lambda x: x in PRECISIONS, "compile": lambda x: type(x) is bool,
            "steps": lambda x: x is None or count(x), "documents": lambda x: x is None or count(x)}
    for name, good in fine.items():
        if not good(settings[name]):
            raise BadInput(f"{path} cannot be used ({name} is {settings[name]!r}): put it back as it was, or name another folder.")
    compiler = os.environ.get("CXX", "cl" if os.name == "nt" else "g++")
    if settings["compile"] and best_device() == "cpu" and not shutil.which(compiler):
        raise BadInput(f"--compile needs a C++ compiler on a CPU, and there is no {compiler}: install one, or leave --compile away.")
    if settings["compile"] and best_device() == "cuda" and not find_spec("triton"):
        raise BadInput("--compile needs triton on a GPU, which torch for this system does not bring: leave --compile away.")


def hold(run):
    """Takes the run's folder for this training; BadInput if another one has it. Released when the process ends, however."""
    if second():                                                         # the first process of the training holds it
        return nullcontext()
    run.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run / "lock")
    try:
        return lock.acquire(timeout=10)                                  # seconds: workers of a killed training need a few to notice
    except Timeout:
        raise BadInput(f"another training is at work in {run}: wait for it, stop it, or work in another folder.") from None


@contextmanager
def together(fabric):
    """The processes of a training end together: where the first one fails, the others would wait for it, and the other way round."""
    if fabric.global_rank > 0:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        yield
    except BaseException as error:                                       # whatever it is: a sentence and Ctrl-C, too
        others, said = getattr(fabric.strategy.launcher, "procs", []), False
        while others:
            other = others.pop()                                         # out of the list: Lightning would kill this one in turn
            said |= isinstance(error, RuntimeError) and ended(other) == 2
            other.kill()
        if said:                                                         # the connection broke, as another one has said what is wrong
            sys.exit(2)
        raise


def ended(process, seconds=2):
    """The exit code of a process that is about to end; None if it is not."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def end_with(parent):
    """Ends this process when the one that started it is gone: nobody needs its share of the work any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def base(run, stage):
    """The folder of the model that a stage begins from, None for the first. As in K2, long context comes before post-training: the cold
    start begins from RUN/longctx where there is one. BadInput where the order is broken."""
    finished = lambda name: checkpoint.finished(run / name)
    if stage == "pretrain":
        return None
    if not finished("pretrain"):
        raise BadInput(f"{stage} begins from a pre-trained model, and {run} has none yet: run --stage pretrain (or everything) first")
    if stage == "sft" and not finished("longctx") and checkpoint.checkpoints(run / "longctx"):
        raise BadInput(f"the long context of {run} is half done: finish it (--stage longctx), or delete {run / 'longctx'}, first")
    if stage == "longctx" and not finished("sft") and checkpoint.checkpoints(run / "sft"):
        raise BadInput(f"the cold start of {run} is half done, from a base without long context: finish it, or delete {run / 'sft'}, first")
    return run / ("longctx" if stage == "sft" and finished("longctx") else "pretrain")


def default_devices(threads):
    """Two processes where there are two cores: small kernels leave threads waiting (measured: 1.2x)."""
    return 1 if best_device() == "cuda" or threads < 2 or os.name == "nt" else 2         # torch for Windows: not every build can meet others


def workers(device):
    """Processes that make batches: one beside a CPU that is busy anyway; a GPU may take a batch faster than one of them makes it."""
    return 1 if device.type == "cpu" else max(1, min(8, torch.get_num_threads() - 1))


def make_fabric(devices, precision):
    """Fabric for the run's devices."""
    from lightning.fabric import Fabric                                  # here, as it takes seconds and only training needs it
    from lightning.fabric.strategies import DDPStrategy
    if data.SHARDS % devices:
        raise BadInput(f"--devices {devices}: a step has {data.SHARDS} shards, so use 1 or {data.SHARDS} processes.")
    warnings.filterwarnings("ignore", message=".*deprecated.*")          # between Lightning and torch; nothing a reader can do about it
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)     # precision and cards: they are in our own first line
    strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if devices > 1 else "auto"
    return Fabric(accelerator=best_device(), devices=devices, strategy=strategy, precision=precision)


def launch(devices, threads, precision):
    """Fabric with its processes started; they share the threads."""
    fabric = make_fabric(devices, precision)
    fabric.launch()
    torch.set_num_threads(max(1, threads // devices))                    # after it: Lightning goes by the machine's cores
    return fabric


@contextmanager
def processes(threads):
    """Two processes where training would take two: both run what follows, each on its share of the problems (nanokimi/team.py)."""
    devices = default_devices(threads)
    torch.set_flush_denormal(True)
    if devices == 1:
        torch.set_num_threads(threads)
        yield
        return
    fabric = launch(devices, threads, "32-true")
    console.quiet = fabric.global_rank > 0
    with together(fabric):
        yield


def faster_precision():
    """The precision that trains faster here."""
    return "bf16-mixed" if faster_dtype() == torch.bfloat16 else "32-true"


def matmul_dtype(precision):
    """What Newton-Schulz multiplies in: the dtype that the run's other matmuls have, so that it is the same in every process and after a
    resume."""
    return {"bf16-mixed": torch.bfloat16, "32-true": torch.float32}[precision]


def compile_layers(model):
    """torch.compile for the language model's layers, in place, one by one with dynamic shapes: equal layers share their code. Its floats
    differ from eager ones in the last bits. The encoder stays eager: its groups of clips are other ones in every batch. So do grouped
    experts, whose sizes come out of the data; excluded here and not where they are defined, as that imports the compiler, which takes seconds."""
    EXPERTS["grouped"] = torch.compiler.disable(experts_grouped)
    for layer in model.language.layers:
        layer.compile(dynamic=True)


def set_steps(run, settings, preset, model, tokenizer, fabric, log, warm=20, timed=40):
    """Time a few real steps on a throw-away copy of the model; write and return the number of pre-training steps that fit the minutes.

    Not too few: the last steps read batches that were made while others were timed, so that a core is free and they look fast."""
    trial = copy.deepcopy(model).to(fabric.device).train()
    if settings["compile"]:
        compile_layers(trial)
    optimizer = MuonClip(trial.named_parameters(), lr=1e-4, ns_dtype=matmul_dtype(settings["precision"]))
    batches = data.Batches("pretrain", tokenizer, preset.model.vision, settings["seed"] + 10 ** 6, preset.documents, preset.length,
                           2 * (warm + timed), warm + timed, fabric.global_rank, fabric.world_size)  # mid-run, where clips are at full size
    for i, (shards, _) in enumerate(data.stream(batches, workers(fabric.device))):
        if i == warm:
            start = time.perf_counter()
        for batch in shards:
            with fabric.autocast():
                loss, _ = trial.loss(batch.to(fabric.device))
            loss.backward()
        optimizer.step(), optimizer.zero_grad(), qk_clip(trial, 1e9), trial.language.update_bias(0.0)
    per_step = fabric.all_reduce(torch.tensor((time.perf_counter() - start) / timed), reduce_op="mean").item()
    per_step *= 1.05                                                     # left out here: exchange, val, checkpoints (ours)
    seconds = 60 * settings["minutes"] * preset.train_share - 10
    steps = int(seconds / per_step - SFT_STEP * preset.sft_steps)
    settings |= {"steps": max(preset.warmup + 10, steps), "measured_step_seconds": per_step}
    if fabric.is_global_zero:
        write_json(run / "run.json", settings)
    log.say(f"{1000 * per_step:.0f} ms a step: {settings['steps']} pre-training steps for {settings['minutes']:g} minutes in all")
    if settings["steps"] > steps:
        least = ((settings["steps"] + SFT_STEP * preset.sft_steps) * per_step + 10) / preset.train_share / 60
        log.say(f"note: too few for this machine. That many steps and the {preset.sft_steps} of the cold start take {least:.0f} minutes here, and learn "
                "little: more --minutes (and another --run)")
    if settings["precision"] == "32-true" and fabric.device.type == "cpu":
        log.say("fp32 steps take longer than the bf16 ones of README.md's runs, so that fewer fit: more --minutes (and another --run) learn more")
    return settings["steps"]


def shares(totals):
    """What a stage has read, in words."""
    tokens = totals["tokens"]
    return (f"{tokens / 1e6:.2f} M tokens in {totals['documents']} documents: {totals['image_tokens'] / tokens:.1%} pictures, "
            f"{totals['clip_tokens'] / tokens:.1%} clips, {totals['learned'] / tokens:.0%} of all tokens trained on")


# ---- Ctrl-C and the log ------------------------------------------------------------------------------------------------------------

@dataclass
class Stop:
    """Whether somebody pressed Ctrl-C."""
    asked: bool = False


@contextmanager
def interruptible():
    """The first Ctrl-C (or TERM) asks the loop to save and stop; the second one stops at once."""
    stop = Stop()

    def ask(number, frame):
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True
        console.print("\nsaving after this step (Ctrl-C again: stop at once) ...")
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Log:
    """metrics.jsonl always, a progress bar with the numbers that matter, wandb when asked."""

    def __init__(self, run, fabric, wandb=False):
        self.path, self.val, self.bar, self.wandb, self.silent = run / "metrics.jsonl", {}, None, None, not fabric.is_global_zero
        if wandb and not self.silent:
            import wandb as library
            mode = os.environ.get("WANDB_MODE", "offline")               # WANDB_MODE=online sends it out
            self.wandb = library.init(project="nanokimi", name=run.name, dir=run, mode=mode)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.wandb:
            self.wandb.finish()

    def say(self, text):
        """A line above the progress bar."""
        if not self.silent:
            (self.bar.console if self.bar else console).print(text, markup=False, soft_wrap=True)

    def progress(self, stage, batches, steps, done):
        """Iterate over batches behind a progress bar (in the first process)."""
        if self.silent:
            yield from batches
            return
        self.val = {}                                                    # the last stage's would be shown as this one's
        checkpoint.keep_rows(self.path, lambda row: row["stage"] != stage or row["step"] <= done)
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[note]}")]
        with Progress(*columns, console=console, refresh_per_second=2) as self.bar:
            self.task = self.bar.add_task(stage, total=steps, completed=done, note="")
            yield from batches
        self.bar = None

    def row(self, row):
        """One step's numbers."""
        if self.silent:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.val = row.get("val", self.val)
        best = " ".join(f"{name} {value:.0%}" for name, value in list(self.val.items())[:5])
        speed = row["tokens"] / row["seconds"] / 1000
        self.bar.update(self.task, completed=row["step"], note=f"{best} loss {row['loss']:.2f} {speed:.1f}k tok/s")
        if "val" in row:
            val = "  ".join(f"{name} {value:.0%}" for name, value in row["val"].items())
            self.say(f"{row['stage']} {row['step']:5d}  loss {row['loss']:.3f}  val {val}")
        if self.wandb:
            self.wandb.log({k: v for k, v in row.items() if k != "load"})
