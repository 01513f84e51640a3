"""Speed, side by side in one run on random nano weights: python -m nanokimi.bench (needs transformers: tests/requirements.txt).

Rows of results/bench.json. Each pair takes turns, and the median of the ratios counts, as the machine may be busy with other things.
"""
import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from . import data, plan, released
from .checkpoint import write_json
from .config import PRESETS
from .engine import Conversation, Engine
from .errors import MOST_THREADS, command, number
from .model import NO_LOSS, NanoKimi, choose_kernel
from .muon import MuonClip, qk_clip
from .policy import mismatch
from .sandbox import Sandbox
from .tokenizer import Tokenizer
from .vision import patchify, prepare_image

TARGETS = {"decode_vs_generate": ">=5", "tool_turn_ms": "<=10", "rollout_overhead": "<=0.25", "optimizer_share": "<=0.15",
           "train_vs_transformers": ">=1.5", "data_share": "<=0.05", "nano_peak_gb": "<2"}
RESULTS = Path(__file__).parent.parent / "results" / "bench.json"
ROUNDS = 5
# what an operator of the profile is about; the first match counts
OPERATORS = {"matrix products": "mm bmm baddbmm addmm addmv dot", "casts, copies, layout": "copy_ _to_copy clone contiguous cat empty as_strided view reshape "
             "transpose t slice split expand permute select unbind stack narrow resize_ zero_ fill_ zeros ones detach empty_strided pad constant_pad_nd",
             "softmax, activations": "softmax log_softmax silu gelu sigmoid swiglu exp exp_ logsumexp",
             "norms": "layer_norm native_layer_norm linalg_vector_norm normalise norm", "gathering, sorting": "index_select index index_copy_ "
             "index_add_ index_put_ gather scatter_ sort topk bincount embedding embedding_dense nonzero masked_fill_ masked_select where",
             "position tables": "upsample_bicubic2d",
             "sums, products and the like": "mul mul_ add add_ sub div neg sum mean rsqrt sqrt pow maximum amax max clamp minimum lerp_ addcmul_ "
             "addcdiv_ sin cos eq ge gt lt"}
OPTIMIZER = "MuonClip, QK-Clip, balancing"


def seconds(function):
    """Wall clock of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def learn(loss_of, half):
    """Forward and backward."""
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        loss = loss_of()
    loss.backward()


def picture_prompts(engine, number, side=64):
    """Chat prompts of equal length with one picture each."""
    rng = np.random.default_rng(0)
    pictures = [prepare_image(rng.integers(0, 256, (side, side, 3)).astype(np.uint8), engine.model.config.vision) for _ in range(number)]
    return [engine.tokenizer.render_chat([{"role": "user", "content": [p, " what is in the picture?"]}], generate=True) for p in pictures]


def in_transformers(model, tokenizer):
    """The same weights in transformers' kimi_k25."""
    import transformers
    config = transformers.Kimi_K25Config(**released.kimi_k25_config(model.config, tokenizer.media_pad))
    return transformers.Kimi_K25ForConditionalGeneration.from_pretrained(None, config=config,
                                                                         state_dict=released.to_kimi_k25(model.state_dict(), model.config))


def their_inputs(ids, patches, grids, patch):
    """What it takes: ids (B, T), our patches (P, 3 * patch * patch) as pixels in -1..1."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": torch.tensor(grids),
            "pixel_values": (patches.float() / 127.5 - 1).view(-1, 3, patch, patch)}


def decoding(engine, batch=64, new=64):
    """decode_vs_generate: our tokens a second over those of transformers' generate, same weights, same prompts, greedy, both with a cache."""
    model, tokenizer = engine.model, engine.tokenizer
    theirs = in_transformers(model, tokenizer)
    prompts = picture_prompts(engine, batch)
    patches, grids = patchify([clip for prompt in prompts for clip in prompt.clips], tokenizer.patch)
    ids = torch.tensor([prompt.ids for prompt in prompts])
    inputs = their_inputs(ids, patches, grids, tokenizer.patch)
    count = {}

    def ours():
        count["ours"] = sum(len(r.ids) for (r,) in engine.generate(prompts, new))

    def generate():
        out = theirs.generate(**inputs, max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad,
                              eos_token_id=tokenizer.im_end, suppress_tokens=[tokenizer.media_pad])
        count["theirs"] = out.numel() - ids.numel()
    ours(), generate()
    pairs = [(seconds(ours), seconds(generate)) for _ in range(ROUNDS)]
    speeds = [(count["ours"] / a, count["theirs"] / b) for a, b in pairs]
    return {"decode_vs_generate": [a / b for a, b in speeds], "decode_tokens_s": [a for a, _ in speeds], "generate_tokens_s": [b for _, b in speeds]}


def tool_turns(engine, batch=32):
    """tool_turn_ms: a call that returns a crop, its encoding and the prefill of the whole conversation, per conversation of a batch."""
    code = {"name": "python", "arguments": {"code": "img.crop((0, 0, 32, 32))"}}
    said = engine.tokenizer.render_chat([{"role": "user", "content": ""}, {"role": "assistant", "thinking": " so.", "content": "", "tool_calls": [code]}])
    call = said.ids[said.ids.index(engine.tokenizer.think) + 1:]
    image = np.random.default_rng(0).integers(0, 256, (200, 240, 3)).astype(np.uint8)

    def turn():
        talks = [Conversation(prompt, (0, i), 64, 2, Sandbox({"img": image})) for i, prompt in enumerate(picture_prompts(engine, batch))]
        for talk in talks:
            talk.response.add(call, [0.0] * len(call), True)
            talk.response.parsed, talk.asks = engine.tokenizer.parse_response(call, opened=True), True
            talk.sandbox.run("1")                                        # the worker process is up, as after the first call of a conversation
        spent = seconds(lambda: (engine._answer(talks), engine._generate([t.context() for t in talks], [t.key for t in talks], [1] * batch, 0.0)))
        assert all(len(talk.response.clips) == 1 for talk in talks), "a crop did not come back"
        for talk in talks:
            talk.sandbox.close()
        return 1000 * spent / batch
    turn()
    return {"tool_turn_ms": [turn() for _ in range(ROUNDS)]}


def bookkeeping(engine, batch=128, new=64):
    """rollout_overhead: what a sampled rollout costs beside the model's own forwards, head included, over those; on one thread, so that they
    add up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    prompts, language, embed, clock = picture_prompts(engine, batch // 8), engine.model.language.forward, engine.model.embed, []
    head = engine.model.language.head

    def timed(function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            out = function(*args, **kwargs)
            clock.append(time.perf_counter() - start)
            return out
        return call
    engine.model.language.forward, engine.model.embed, head.forward = timed(language), timed(embed), timed(head.forward)
    try:
        rows = []
        for seed in range(ROUNDS):
            clock.clear()
            total = seconds(lambda: engine.generate(prompts, new, 1.0, seed, k=8))
            rows.append((total - sum(clock)) / sum(clock))
    finally:
        del engine.model.language.forward, engine.model.embed, head.forward
        torch.set_num_threads(threads)
    return {"rollout_overhead": rows}


def long_tailed(engine, rng, number, k, most=480):
    """Groups of k conversations that end where a log-normal draw says (median 32, sigma 1): random weights do not end by themselves."""
    lengths = np.clip(rng.lognormal(np.log(32), 1.0, (number, k)), 2, most).astype(int)
    keys = rng.integers(2 ** 30, size=number)
    return [[Conversation(prompt, (int(key), j), int(length)) for j, length in enumerate(row)]
            for prompt, key, row in zip(picture_prompts(engine, number), keys, lengths)]


def steady(engine, segment, seed, problems=16, k=8, warm=5, measured=8):
    """Iterations as rl.py's, rollouts only: a group leaves when all of its responses are over, and new ones fill up to `problems` groups.
    -> seconds a finished response, longest iteration (s), prefilled tokens a finished response, and the share of places that stayed empty
    in a batch of problems x k rows that steps until its last row is done."""
    rng, waiting, spent, finished, seen = np.random.default_rng(seed), [], [], 0, {"prefill": 0, "steps": 0, "rows": 0}
    forward = engine.model.language.forward

    def counted(x, positions, *rest):
        decoding = x.shape[1] == 1
        seen["prefill"] += 0 if decoding else int((rest[0] > 0).sum())
        seen["steps"], seen["rows"] = seen["steps"] + decoding, seen["rows"] + decoding * len(x)
        return forward(x, positions, *rest)
    engine.model.language.forward = counted
    try:
        for iteration in range(warm + measured):
            if iteration == warm:
                spent, finished, seen = [], 0, dict.fromkeys(seen, 0)
            groups = waiting + long_tailed(engine, rng, problems - len(waiting), k)
            spent.append(seconds(lambda: engine.advance([talk for group in groups for talk in group], 1.0, segment)))
            waiting = [group for group in groups if not all(talk.over for talk in group)]
            finished += k * (len(groups) - len(waiting))
    finally:
        del engine.model.language.forward
    return sum(spent) / finished, max(spent), seen["prefill"] / finished, 1 - seen["rows"] / (seen["steps"] * problems * k)


def partial_rollouts(engine, segment=64):
    """partial_*: --segment over whole responses on long-tailed lengths, each as a ratio; *_idle: the share of empty places in either."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                                             # one batch at a time, so that steps can be counted
    try:
        pairs = [(steady(engine, segment, seed), steady(engine, None, seed)) for seed in range(3)]
    finally:
        torch.set_num_threads(threads)
    names = ("partial_seconds", "partial_longest", "partial_prefill")
    return {name: [part[i] / whole[i] for part, whole in pairs] for i, name in enumerate(names)} | {
        "partial_idle": [part[3] for part, _ in pairs], "whole_idle": [whole[3] for _, whole in pairs]}


def lower_precision(engine, batch=128, new=64):
    """rollout_bf16: how many times as fast a bf16 copy samples as fp32, each its own answers; handover_ms: bringing the copy up to date; mismatch*: what fp32
    makes of the copy's tokens (policy.mismatch)."""
    lower, prompts, rows = Engine.lowered(engine.model, engine.tokenizer), picture_prompts(engine, batch // 8), {}
    lower.generate(prompts, 4, 1.0, k=8)
    for seed in range(ROUNDS):
        groups = []
        handover = 1000 * seconds(lambda: lower.receive(engine.model))
        low, full = (seconds(lambda e=e: groups.extend(e.generate(prompts, new, 1.0, seed, k=8))) for e in (lower, engine))
        row = {"rollout_bf16": full / low, "handover_ms": handover} | mismatch(recomputed(engine, prompts, groups[:len(prompts)]))
        rows = {name: [*rows.get(name, []), value] for name, value in row.items()}
    return rows


@torch.no_grad()
def recomputed(engine, prompts, groups):
    """Log-probabilities of these responses by the engine's model, minus those recorded: (N,)."""
    out = []
    for prompt, group in zip(prompts, groups):
        documents = [response.trajectory(prompt) for response in group]
        length = max(len(doc.ids) for doc in documents)
        batch = data.to_batch([[doc] for doc in documents], length, engine.tokenizer.pad, engine.tokenizer.patch)
        old = torch.tensor([p for response in group for p in response.logprobs])
        out.append(engine.model.target_logprobs(batch)[0] - old)
    return torch.cat(out)


def training_step(model, tokenizer, preset):
    """optimizer_share: MuonClip with QK-Clip over a whole pre-training step of one process, in the precision that train.py would choose."""
    trained = NanoKimi(model.config, tokenizer.media_pad).train()
    choose_kernel(trained, "cpu")
    optimizer, half = MuonClip(trained.named_parameters(), lr=1e-4), plan.faster_precision() == "bf16-mixed"
    batches = data.Batches("pretrain", tokenizer, model.config.vision, 0, preset.documents, preset.length, 100, 60)
    rows, steps = [], []
    for i in range(ROUNDS + 5):
        (shards, _), start = batches[i], time.perf_counter()
        for batch in shards:
            learn(lambda: trained.loss(batch)[0], half)
        middle = time.perf_counter()
        optimizer.step(), qk_clip(trained, 30.0), trained.language.update_bias(0.0), optimizer.zero_grad()
        done = time.perf_counter()
        rows, steps = [*rows, (done - middle) / (done - start)], [*steps, 1000 * (done - start)]
    return {"optimizer_share": rows[5:], "train_step_ms": steps[5:]}


def picture_batch(tokenizer, preset):
    """A pre-training batch without clips, which transformers cannot take."""
    kinds = {kind: share for kind, share in data.PRETRAIN.items() if kind not in ("clip", "events", "clip_text")}
    rng = np.random.default_rng(0)
    drawn = [data.pretrain_document(rng, tokenizer, preset.model.vision, preset.length, kind)[1]
             for kind in data.draw_kinds(rng, kinds, preset.documents)]
    drawn = [doc for doc in drawn if all(clip.kind == "image" for clip in doc.clips)]
    return data.to_batch(data.pack(drawn, preset.length), preset.length, tokenizer.pad, tokenizer.patch)


def train_step_beside_transformers(model, tokenizer, preset):
    """train_vs_transformers: forward and backward of one batch of pictures and text, same weights, each side in the better of fp32 and
    bf16, transformers with the best of its expert kernels. Its attention does not know where a document in a row ends; the price is equal."""
    trained = copy.deepcopy(model).train()
    choose_kernel(trained, "cpu")
    batch = picture_batch(tokenizer, preset)
    labels = torch.cat([torch.full_like(batch.targets[:, :1], NO_LOSS), batch.targets[:, :-1]], 1)          # they shift labels themselves
    inputs = their_inputs(batch.ids, batch.patches, batch.grid_thw, tokenizer.patch) | {"labels": labels}

    def make_theirs(kernel):
        theirs = in_transformers(model, tokenizer).train()
        theirs.model.language_model.set_experts_implementation(kernel)
        return lambda: theirs(**inputs, use_cache=False).loss
    ours = {half: lambda half=half: learn(lambda: trained.loss(batch)[0], half) for half in (False, True)}
    theirs = {(kernel, half): lambda loss_of=loss_of, half=half: learn(loss_of, half)
              for kernel in ("eager", "grouped_mm", "batched_mm") for loss_of in [make_theirs(kernel)] for half in (False, True)}
    best = {}
    for side, choices in (("ours", ours), ("theirs", theirs)):
        for step in choices.values():
            step()                                                       # warm
        best[side] = min(choices, key=lambda name: min(seconds(choices[name]) for _ in range(3)))
    plan.say(f"train step: ours in {'bf16' if best['ours'] else 'fp32'}; theirs with {best['theirs'][0]} in "
             f"{'bf16' if best['theirs'][1] else 'fp32'}; {int((batch.segments > 0).sum())} tokens")
    pairs = [(seconds(ours[best["ours"]]), seconds(theirs[best["theirs"]])) for _ in range(2 * ROUNDS)]
    tokens = int((batch.segments > 0).sum())
    return {"train_vs_transformers": [b / a for a, b in pairs], "train_tokens_s": [tokens / a for a, _ in pairs],
            "transformers_tokens_s": [tokens / b for _, b in pairs]}


def data_cost(model, tokenizer, preset):
    """data_share: CPU seconds of making batches over those of making them and training on them."""
    trained, half = copy.deepcopy(model).train(), plan.faster_precision() == "bf16-mixed"
    choose_kernel(trained, "cpu")
    batches, rows = data.Batches("pretrain", tokenizer, model.config.vision, 0, preset.documents, preset.length, 100, 60), []
    for i in range(ROUNDS + 2):
        start = time.process_time()
        shards, _ = batches[i]
        made = time.process_time()
        for batch in shards:
            learn(lambda: trained.loss(batch)[0], half)
        rows.append((made - start) / (time.process_time() - start))
    return {"data_share": rows[2:]}


def one_process(model, tokenizer, preset):
    """(a step function of one of train.py's two processes, its model, a list of its batches): half of a step on one thread, in its
    precision; but the whole optimizer, whose work two processes share."""
    trained, half = copy.deepcopy(model).train(), plan.faster_precision() == "bf16-mixed"
    choose_kernel(trained, "cpu")
    optimizer = MuonClip(trained.named_parameters(), lr=1e-4)
    batches = data.Batches("pretrain", tokenizer, model.config.vision, 0, preset.documents, preset.length, 100, 60, rank=0, world=2)

    def step(batch):
        with record_function("forward"), torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = trained.loss(batch)
        with record_function("backward"):
            loss.backward()
        with record_function(OPTIMIZER):
            optimizer.step(), qk_clip(trained, 30.0), trained.language.update_bias(0.0), optimizer.zero_grad()
    return step, trained, [batches[i][0][0] for i in range(2 * ROUNDS)]


def useful_flops(model, tokenizer, preset):
    """useful_flops_share: arithmetic of the model's matrix products, forward and backward, a second of a whole step on one thread, over the
    best that this thread reaches in a large product of the same dtype. Also the profile: shares of the step by part and by operator."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    step, trained, batches = one_process(model, tokenizer, preset)
    half = plan.faster_precision() == "bf16-mixed"
    for batch in batches[:ROUNDS]:
        step(batch)
    peak, spent = matmul_peak(torch.bfloat16 if half else torch.float32), [seconds(lambda batch=batch: step(batch)) for batch in batches[ROUNDS:]]
    for label, modules in modules_of(trained).items():
        for module in modules:
            module.forward = recorded(module.forward, label)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as prof:
        for batch in batches[ROUNDS:]:
            step(batch)
    for layer in trained.language.layers[trained.config.language.dense_layers:]:
        layer.moe.kernel = "loop"                                        # the counter sees its products
    flops = []
    for batch in batches[ROUNDS:]:
        with FlopCounterMode(display=False) as counter:
            trained.loss(batch)[0].backward()
        flops.append(counter.get_total_flops())
    torch.set_num_threads(threads)
    return {"useful_flops_share": [f / s / peak for f, s in zip(flops, spent)], "step_gflop": [f / 1e9 for f in flops],
            "matmul_peak_gflops": [peak / 1e9], "half_step_ms": [1000 * s for s in spent]}, profile_shares(prof, tuple(modules_of(trained)))


def matmul_peak(dtype, side=1024):
    """Operations a second of a large matrix product on the threads in use: the best of some."""
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    return 2 * side ** 3 / min(seconds(lambda: a @ b) for _ in range(20))


def modules_of(model):
    """{label: modules} that the profile tells apart; what is in none of them counts as REST, what is in two as the inner one's."""
    layers = model.language.layers
    return {"encoder: attention": [block.attn for block in model.vision.layers], "encoder: the rest": [model.vision], "projector": [model.projector],
            "language model: attention (MLA)": [layer.attn for layer in layers],
            "language model: router and experts": [layer.moe for layer in layers if layer.moe is not None],
            "language model: dense feed-forward": [layer.mlp for layer in layers if layer.mlp is not None], "head": [model.language.head]}


REST = "embeddings, norms, residuals, loss"


def recorded(function, label):
    """The function under a name that the profiler sees."""
    def inner(*args, **given):
        with record_function(label):
            return function(*args, **given)
    return inner


def above(event, names):
    """The nearest of these names around an event, or None."""
    while event is not None and event.name not in names:
        event = event.cpu_parent
    return event and event.name


def by_module(events, labels):
    """{(forward or backward, label): share}. A backward operator belongs to the module whose forward operator has its sequence number."""
    owner, spent = {}, Counter()
    inside = {id(event): above(event, (*labels, "forward", OPTIMIZER)) for event in events}
    for event in events:
        label = inside[id(event)]
        if event.sequence_nr >= 0 and label not in (None, OPTIMIZER) and "Backward" not in event.name:
            owner.setdefault(event.sequence_nr, label)
    for event in events:
        label, engine = inside[id(event)], event
        while label is None and engine is not None and not engine.name.startswith("autograd::engine::evaluate_function"):
            engine = engine.cpu_parent
        if label == OPTIMIZER or label is None and engine is None:
            spent[("", OPTIMIZER if label else "autograd itself")] += event.self_cpu_time_total
        else:
            way, label = ("forward", label) if label else ("backward", owner.get(engine.sequence_nr, "forward"))
            spent[(way, REST if label == "forward" else label)] += event.self_cpu_time_total
    return {key: value / spent.total() for key, value in spent.items()}


def profile_shares(prof, labels):
    """{"parts": {label: [forward, backward]}, "operators": {kind: share}, "named": {operator: share of those with 1 % or more}} of a
    profiled step."""
    events, shares = prof.key_averages(), by_module(prof.events(), labels)
    parts = {label: [shares.get(("forward", label), 0.0), shares.get(("backward", label), 0.0)] for label in (*labels, REST)}
    parts |= {label: [share, 0.0] for (way, label), share in shares.items() if not way}
    own = {e.key: e.self_cpu_time_total for e in events if e.key not in labels}
    total, kinds = sum(own.values()), {}
    for key, value in own.items():
        name = key.removeprefix("aten::").removeprefix("_").lower().removesuffix("_backward").removesuffix("_backward_data")
        kind = next((kind for kind, names in OPERATORS.items() if name in names.split()), "Python, autograd, the rest")
        kinds[kind] = kinds.get(kind, 0.0) + value / total
    named = {key: value / total for key, value in own.items() if value > 0.01 * total}
    size = lambda item: -sum(item[1]) if isinstance(item[1], list) else -item[1]
    return {name: dict(sorted(table.items(), key=size)) for name, table in (("parts", parts), ("operators", kinds), ("named", named))}


PEAK = """import runpy, sys
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])"""


def peak_memory():
    """nano_peak_gb: the most memory that one process of `python train.py --steps 60` holds, libraries included, as Linux counts it from the
    program's start (a parent's own memory must not count: ru_maxrss is inherited)."""
    if not Path("/proc/self/status").exists():
        return {}
    with tempfile.TemporaryDirectory() as run:
        done = subprocess.run([sys.executable, "-c", PEAK, "--run", run, "--steps", "60", "--stage", "pretrain", "--devices", "1"], check=True,
                              capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return {"nano_peak_gb": [int(done.stdout.split()[-1]) / 2 ** 20]}


def write_profile(path, shares, values, commit):
    """docs/PROFILE.md: where the time of a training step goes."""
    table = lambda rows: "\n".join(["| | share |", "|---|---|", *(f"| {name} | {100 * share:.1f} % |" for name, share in rows.items())])
    parts = "\n".join(["| | forward | backward | both |", "|---|---|---|---|", *(
        f"| {name} | {100 * there:.1f} % | {100 * back:.1f} % | {100 * (there + back):.1f} % |" for name, (there, back) in shares["parts"].items())])
    median = {name: float(np.median(seen)) for name, seen in values.items()}
    path.write_text(f"""# Where a training step goes

Written by `python -m nanokimi.bench`: half of a nano pre-training step (one of train.py's two processes) on one thread, {plan.machine()},
commit {commit}. The model's matrix products are {median['step_gflop']:.1f} GFLOP a half step, done in {median['half_step_ms']:.0f} ms; a large product of
the same dtype reaches {median['matmul_peak_gflops']:.0f} GFLOP/s on this thread: **{100 * median['useful_flops_share']:.1f} % of the time (median of the steps' own shares) is useful arithmetic at full speed**.

By part of the model. This is one process without the other: it orthogonalises all matrices for half of the data. In a training the two
share that work (`nanokimi/muon.py`), so that the optimizer's part is smaller there; `optimizer_share` is one process with all of the data:

{parts}

By kind of operator (the operator's own time):

{table(shares['operators'])}

Operators with 1 % or more:

{table(shares['named'])}
""", encoding="utf-8")


@command
def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed rows, side by side.")
    parser.add_argument("--threads", type=number(int, 1, MOST_THREADS), default=plan.cores())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args, commit = parser.parse_args(), plan.commit()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""                              # all rows are about the CPU
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    preset = PRESETS["nano"]
    tokenizer = Tokenizer.train(data.corpus(2000), preset.model.language.vocab, preset.model.vision.patch)
    torch.manual_seed(0)
    model = NanoKimi(preset.model, tokenizer.media_pad).eval()
    choose_kernel(model, "cpu")
    engine, values = Engine(model, tokenizer), {}
    for part in (decoding, tool_turns, bookkeeping, partial_rollouts, lower_precision):
        values |= part(engine)
    for part in (training_step, train_step_beside_transformers, data_cost):
        values |= part(model, tokenizer, preset)
    rows, shares = useful_flops(model, tokenizer, preset)
    values |= rows | peak_memory()
    if args.out.resolve() == RESULTS:                                              # published together
        write_profile(Path(__file__).parent.parent / "docs" / "PROFILE.md", shares, values, commit)
    for name, seen in values.items():
        plan.say(f"{name:<20} {np.median(seen):10.2f}   ({min(seen):.2f} to {max(seen):.2f})   {TARGETS.get(name, '')}")
    rows = [{"name": name, "mean": float(np.median(seen)), "sd": float(np.std(seen, ddof=1)) if len(seen) > 1 else None, "values": seen, "target": TARGETS.get(name)}
            for name, seen in values.items()]
    write_json(args.out, {"experiment": args.out.stem, "command": " ".join(["python -m nanokimi.bench", *sys.argv[1:]]), "commit": commit,
                          "machine": plan.machine(), "threads": args.threads, "seeds": [0], "note": "mean holds the median of the rounds",
                          "profile": shares, "rows": rows})


if __name__ == "__main__":
    main()
