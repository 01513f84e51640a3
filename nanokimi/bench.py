"""Speed, side by side in one run on random nano weights: python -m nanokimi.bench (needs transformers: tests/requirements.txt).

Rows of results/bench.json. Each pair takes turns, and the median of the ratios counts, as the machine may be busy with other things.
"""
import argparse
import copy
import sys
import time
from pathlib import Path

import numpy as np
import torch

from . import data, plan, released
from .checkpoint import write_json
from .config import PRESETS
from .engine import Conversation, Engine
from .model import NanoKimi, choose_kernel
from .muon import MuonClip, qk_clip
from .sandbox import Sandbox
from .tokenizer import Tokenizer
from .vision import patchify, prepare_image

TARGETS = {"decode_vs_generate": ">=5", "tool_turn_ms": "<=10", "rollout_overhead": "<=0.25", "optimizer_share": "<=0.15",
           "train_vs_transformers": ">=1.5", "data_share": "<=0.05"}
ROUNDS = 5


def seconds(function):
    """Wall clock of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def picture_prompts(engine, number, side=64):
    """Chat prompts of equal length with one picture each."""
    rng = np.random.default_rng(0)
    pictures = [prepare_image(rng.integers(0, 256, (side, side, 3)).astype(np.uint8), engine.model.config.vision) for _ in range(number)]
    return [engine.tokenizer.render_chat([{"role": "user", "content": [p, " what is in the picture?"]}], generate=True) for p in pictures]


def decoding(engine, batch=64, new=64):
    """decode_vs_generate: our tokens a second over those of transformers' generate, same weights, same prompts, greedy, both with a cache."""
    import transformers
    model, tokenizer = engine.model, engine.tokenizer
    config = transformers.Kimi_K25Config(**released.kimi_k25_config(model.config, tokenizer.media_pad))
    theirs = transformers.Kimi_K25ForConditionalGeneration.from_pretrained(None, config=config,
                                                                          state_dict=released.to_kimi_k25(model.state_dict(), model.config))
    prompts = picture_prompts(engine, batch)
    patches, grids = patchify([clip for prompt in prompts for clip in prompt.clips], tokenizer.patch)
    ids = torch.tensor([prompt.ids for prompt in prompts])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": torch.tensor(grids),
              "pixel_values": (patches.float() / 127.5 - 1).view(-1, 3, tokenizer.patch, tokenizer.patch)}
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
    """rollout_overhead: what a sampled rollout costs beside the model's own forwards, over those; on one thread, so that they add up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    prompts, language, embed, clock = picture_prompts(engine, batch // 8), engine.model.language.forward, engine.model.embed, []

    def timed(function):
        def call(*args, **kwargs):
            start = time.perf_counter()
            out = function(*args, **kwargs)
            clock.append(time.perf_counter() - start)
            return out
        return call
    engine.model.language.forward, engine.model.embed = timed(language), timed(embed)
    try:
        rows = []
        for seed in range(ROUNDS):
            clock.clear()
            total = seconds(lambda: engine.generate(prompts, new, 1.0, seed, k=8))
            rows.append((total - sum(clock)) / sum(clock))
    finally:
        del engine.model.language.forward, engine.model.embed
        torch.set_num_threads(threads)
    return {"rollout_overhead": rows}


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
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss, _ = trained.loss(batch)
            loss.backward()
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
    import transformers
    trained = copy.deepcopy(model).train()
    choose_kernel(trained, "cpu")
    batch = picture_batch(tokenizer, preset)
    labels = torch.cat([torch.full_like(batch.targets[:, :1], -100), batch.targets[:, :-1]], 1)          # they shift labels themselves
    inputs = {"input_ids": batch.ids, "attention_mask": torch.ones_like(batch.ids), "image_grid_thw": torch.tensor(batch.grid_thw),
              "pixel_values": (batch.patches.float() / 127.5 - 1).view(-1, 3, tokenizer.patch, tokenizer.patch), "labels": labels}

    def run(loss_of, half):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = loss_of()
        loss.backward()

    def make_theirs(kernel):
        config = transformers.Kimi_K25Config(**released.kimi_k25_config(model.config, tokenizer.media_pad))
        theirs = transformers.Kimi_K25ForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=released.to_kimi_k25(model.state_dict(), model.config)).train()
        theirs.model.language_model.set_experts_implementation(kernel)
        return lambda: theirs(**inputs, use_cache=False).loss
    ours = {half: lambda half=half: run(lambda: trained.loss(batch)[0], half) for half in (False, True)}
    theirs = {(kernel, half): lambda loss_of=loss_of, half=half: run(loss_of, half)
              for kernel in ("eager", "grouped_mm", "batched_mm") for loss_of in [make_theirs(kernel)] for half in (False, True)}
    best = {}
    for side, choices in (("ours", ours), ("theirs", theirs)):
        for step in choices.values():
            step()                                                       # warm
        best[side] = min(choices, key=lambda name: min(seconds(choices[name]) for _ in range(3)))
    plan.console.print(f"train step: ours in {'bf16' if best['ours'] else 'fp32'}; theirs with {best['theirs'][0]} in "
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
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss, _ = trained.loss(batch)
            loss.backward()
        rows.append((made - start) / (time.process_time() - start))
    return {"data_share": rows[2:]}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Speed rows, side by side.")
    parser.add_argument("--threads", type=int, default=plan.cores())
    parser.add_argument("--out", type=Path, default=Path("results/bench.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    preset = PRESETS["nano"]
    tokenizer = Tokenizer.train(data.corpus(2000), preset.model.language.vocab, preset.model.vision.patch)
    torch.manual_seed(0)
    model = NanoKimi(preset.model, tokenizer.media_pad).eval()
    choose_kernel(model, "cpu")
    engine, values = Engine(model, tokenizer), {}
    for part in (lambda: decoding(engine), lambda: tool_turns(engine), lambda: bookkeeping(engine), lambda: training_step(model, tokenizer, preset),
                 lambda: train_step_beside_transformers(model, tokenizer, preset), lambda: data_cost(model, tokenizer, preset)):
        values |= part()
    for name, seen in values.items():
        plan.console.print(f"{name:<20} {np.median(seen):10.2f}   ({min(seen):.2f} to {max(seen):.2f})   {TARGETS.get(name, '')}")
    rows = [{"name": name, "mean": float(np.median(seen)), "sd": float(np.std(seen, ddof=1)), "values": seen, "target": TARGETS.get(name)}
            for name, seen in values.items()]
    write_json(args.out, {"experiment": args.out.stem, "command": " ".join(["python -m nanokimi.bench", *sys.argv[1:]]), "commit": plan.commit(),
                          "machine": plan.machine(), "threads": args.threads, "seeds": [0], "note": "mean holds the median of the rounds",
                          "rows": rows})


if __name__ == "__main__":
    main()
