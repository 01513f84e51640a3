"""What training and decoding cost on a GPU, preset by preset, beside the memory that was computed: results/gpu.json.

    python docs/gpu.py [--preset nano laptop consumer] [--compile] [--steps 20] [--out results/gpu.json]
    python docs/gpu.py --computed            only adds the memory that nanokimi/memory.py computes; needs no GPU

One process, real batches of the middle of pre-training, made beforehand; the steps are train.py's: both shards, MuonClip, QK-Clip, balancing.
"""
import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from nanokimi import data, plan                                          # noqa: E402
from nanokimi.bench import picture_prompts                               # noqa: E402
from nanokimi.config import PRESETS                                      # noqa: E402
from nanokimi.engine import Engine                                       # noqa: E402
from nanokimi.memory import GIB, parameters, pretraining                    # noqa: E402
from nanokimi.model import NanoKimi, choose_kernel                       # noqa: E402
from nanokimi.muon import MuonClip, qk_clip                              # noqa: E402
from nanokimi.tokenizer import Tokenizer                                 # noqa: E402

BATCHES, WARM = 8, 5


def clock():
    """Seconds, after all that the GPU was asked for."""
    torch.cuda.synchronize()
    return time.perf_counter()


def update(model, optimizer, shards):
    """A step of train.py. Returns seconds of forward and backward, of the rest, and the peaks of both in bytes."""
    torch.cuda.reset_peak_memory_stats()
    start = clock()
    for batch in shards:
        with torch.autocast("cuda", torch.bfloat16):
            loss, _ = model.loss(batch.to("cuda"))
        loss.backward()
    middle, passing = clock(), torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step(), qk_clip(model, 30.0), model.language.update_bias(1e-3), optimizer.zero_grad()
    return middle - start, clock() - middle, passing, torch.cuda.max_memory_allocated()


def training(preset, tokenizer, compiled, steps):
    """Medians of `steps` steps."""
    batches = data.Batches("pretrain", tokenizer, preset.model.vision, 0, preset.documents, preset.length, 2 * BATCHES, BATCHES)
    workers = plan.workers(torch.device("cuda"))
    started = time.perf_counter()
    made = list(data.stream(batches, workers))
    making = (time.perf_counter() - started) / len(made)
    torch.manual_seed(0)
    model = NanoKimi(preset.model, tokenizer.media_pad).train().cuda()
    choose_kernel(model, "cuda")
    if compiled:
        plan.compile_layers(model)
    optimizer = MuonClip(model.named_parameters(), lr=1e-4, ns_dtype=torch.bfloat16)
    started = time.perf_counter()
    for i in range(WARM + len(made)):                                    # every shape was seen once
        update(model, optimizer, made[i % len(made)][0])
    warming = time.perf_counter() - started
    rows = [update(model, optimizer, made[i % len(made)][0]) for i in range(steps)]
    forward, rest, passing, stepping = zip(*rows)
    step = statistics.median(a + b for a, b in zip(forward, rest))
    tokens = statistics.mean(counts["tokens"] for _, counts in made)
    return {"step_ms": 1000 * step, "optimizer_ms": 1000 * statistics.median(rest), "tokens_s": tokens / step, "documents_s": preset.documents / step,
            "batch_ms": 1000 * making, "workers": workers, "warming_s": warming, "passing_gib": max(passing) / GIB, "stepping_gib": max(stepping) / GIB}


def decoding(preset, tokenizer, rows, new=64):
    """Tokens a second with `rows` prompts of a picture each, random weights."""
    torch.manual_seed(0)
    engine = Engine(NanoKimi(preset.model, tokenizer.media_pad).eval().cuda(), tokenizer)
    choose_kernel(engine.model, "cuda")
    prompts, speeds = picture_prompts(engine, rows), []
    for _ in range(3):
        start = clock()
        said = sum(len(response.ids) for (response,) in engine.generate(prompts, new, 1.0))
        speeds.append(said / (clock() - start))
    return max(speeds)


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", nargs="+", default=["nano", "laptop", "consumer"], choices=PRESETS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"))
    parser.add_argument("--computed", action="store_true", help="only add what nanokimi/memory.py computes; needs no GPU")
    args = parser.parse_args()
    torch.set_num_threads(plan.cores())
    rows = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.preset:
        preset = PRESETS[name]
        tokenizer = Tokenizer.train(data.corpus(2000), preset.model.language.vocab, preset.model.vision.patch)
        if args.computed:
            passing, stepping = pretraining(preset, tokenizer)
            rows[name] = rows.get(name, {}) | {"computed_passing_gib": passing.peak / GIB, "computed_stepping_gib": stepping.peak / GIB}
            args.out.write_text(json.dumps(rows, indent=1) + "\n")
            continue
        total, active = parameters(preset)
        row = {"parameters": total, "active": active, "machine": plan.machine(), "commit": plan.commit(), "command": " ".join(["python", *sys.argv])}
        row |= training(preset, tokenizer, args.compile, args.steps)
        if not args.compile:
            row |= {f"decode_tokens_s_{n}": decoding(preset, tokenizer, n) for n in (1, 64, 512)}
        title = name + (", compiled" if args.compile else "")
        rows[title] = rows.get(title, {}) | row
        print(name, json.dumps(row, indent=1), flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
