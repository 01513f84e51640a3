"""How much memory a preset needs, stage by stage: python -m nanokimi.memory [--preset laptop ...] [--readme]

Nothing is guessed by formula. The real code of a stage runs on tensors that have a shape and no contents (torch's FakeTensorMode), on
batches as it would see them, and a ledger counts every storage from its birth to its end; so it works for sizes that fit no machine.
tests/test_memory.py holds it against what torch's profiler sees a CPU allocate. Left out: the CUDA context, gaps of the caching allocator,
workspaces of libraries (together often one GiB). Training in bf16 is counted under a CPU's autocast, as no backward runs on a GPU that is
not there; a GPU's keeps the layer norms in fp32 and needs a little more.
"""
import argparse
import re
import weakref
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from . import data, muon, rollout
from .config import LONGER, PRESETS, Preset
from .engine import Engine
from .kernels import TokenLogProbs
from .language import Cache
from .learner import MICRO_TOKENS
from .model import Batch, NanoKimi
from .muon import MuonClip
from .tokenizer import Tokenizer
from .vision import prepare_image

aten = torch.ops.aten
BY_VALUE = (aten.nonzero.default, aten.bincount.default, aten.repeat_interleave.Tensor)     # the shape of the result depends on values
PROBLEMS, K = 64, 8              # of an iteration of rl.py: its defaults
GIB = 2 ** 30


# ---- running without contents --------------------------------------------------------------------------------------------------------

class Ledger(TorchDispatchMode):
    """Counts the bytes of all live storages, inside FakeTensorMode: `live` now, `peak` the most since somebody set it.

    Floats have no contents. Integers do, on the side (`known`), as packing and routing decide shapes by them. The one place where integers
    come out of floats is the router's choice: there, all experts are taken equally often.
    """

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.seen = 0, 0, weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with unset_fake_temporarily():
            known = self.compute(func, args, kwargs)
        if func is aten._local_scalar_dense.default and known is not None:
            return known
        by_value = func in BY_VALUE and known is not None
        out = torch.empty_like(known, device=args[0].device) if by_value else self.shaped(func, args, kwargs)
        self.note(pieces(out), pieces(known))
        return out

    def compute(self, func, args, kwargs):
        """What func gives on the contents of its arguments; None where one of them has none."""
        given = [x for arg in (*args, *kwargs.values()) for x in pieces(arg)]
        if any(isinstance(x, FakeTensor) and not hasattr(x, "known") for x in given):
            return balanced(args[0].shape, args[1]) if func is aten.topk.default else None
        contents = lambda x: x.known if isinstance(x, FakeTensor) else torch.device("cpu") if isinstance(x, torch.device) else x
        args, kwargs = tree_map(contents, (args, kwargs))
        return func(*args, **kwargs)

    def note(self, out, known):
        """Books the storages of new tensors, and gives integers their contents."""
        for tensor, contents in zip(out, known if len(known) == len(out) else [None] * len(out)):
            if not isinstance(tensor, FakeTensor):
                continue
            if contents is not None and not (tensor.is_floating_point() or tensor.is_complex()):
                tensor.known = contents
            storage = tensor.untyped_storage()
            if storage not in self.seen:
                self.seen.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.forget, storage.nbytes())

    @staticmethod
    def shaped(func, args, kwargs):
        """What func gives, without contents. Until torch 2.15 nobody knew the shape of a grouped product of fp32, which CPUs can do."""
        if func is not aten._grouped_mm.default:
            return func(*args, **kwargs)
        left, right, offs = args[0], args[1], kwargs.get("offs", args[2] if len(args) > 2 else None)
        return left.new_empty((len(offs),) * (left.ndim == right.ndim == 2) + (left.shape[0], right.shape[-1]))

    def forget(self, size):
        """A storage is gone."""
        self.live -= size


def pieces(x):
    """The members of a list or tuple; anything else is its own only piece."""
    return x if isinstance(x, (list, tuple)) else [x]


def balanced(shape, k):
    """What topk gives where every place of the last dimension is chosen equally often: (no values, indices)."""
    size = torch.Size([*shape[:-1], k])
    return [None, torch.arange(size.numel()).remainder(shape[-1]).view(size)]


@contextmanager
def dry_run():
    """Inside of it, tensors have no contents; gives the ledger."""
    with FakeTensorMode(allow_non_fake_inputs=True), Ledger() as ledger:
        yield ledger


def shell(preset: Preset, media_pad: int, device: str = "cpu", attention: str = "sdpa") -> NanoKimi:
    """The preset's model without contents (inside dry_run), with the kernels that choose_kernel would give a GPU."""
    with torch.device(device):
        model = NanoKimi(preset.model, media_pad)
    for layer in [*model.vision.layers, *model.language.layers]:
        layer.attn.kernel = attention
    for layer in model.language.layers[preset.model.language.dense_layers:]:
        layer.moe.kernel = "grouped"
    return model


# ---- what a stage needs ----------------------------------------------------------------------------------------------------------------

@dataclass
class Need:
    """Bytes, each of them counted once; they add up to the most that is alive in one moment."""
    weights: int                # parameters and buffers, fp32
    gradients: int              # fp32, as large as what is trained
    optimizer: int              # MuonClip: one momentum for every matrix, AdamW's two moments for the rest
    activations: int            # what the forward keeps for the backward (with the weights' bf16 copies, where training is in bf16)
    logits: int                 # (tokens that are trained on or sampled, vocabulary); their gradient is in `working`
    cache: int                  # MLA's latents
    working: int                # what comes and goes: gradients of activations, Newton-Schulz, attention of a prefill

    @property
    def peak(self) -> int:
        return sum(astuple(self))


def states(optimizer: MuonClip) -> None:
    """Makes MuonClip's state, as its first step would."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            for name in ["momentum_buffer"] if group["kind"] == "muon" else ["exp_avg", "exp_avg_sq"]:
                optimizer.buffer(p, name)


def training(model: NanoKimi, ledger: Ledger, batch: Batch, half: bool, update: bool = True) -> tuple[Need, Need | None]:
    """Needs of forward and backward of a micro-batch, and of the optimizer's step (None without `update`). Gradients are there all the
    time, as in every micro-batch but the first of a step."""
    device, logits, weights = model.language.head.weight.device.type, [], ledger.live
    optimizer, trained = MuonClip(model.named_parameters(), lr=1e-4, ns_dtype=torch.bfloat16), [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.grad = torch.zeros_like(p)
    gradients = ledger.live - weights
    states(optimizer)
    start = ledger.peak = ledger.live
    always = (weights, gradients, start - weights - gradients)
    hook = model.language.head.register_forward_hook(lambda module, given, out: logits.append(out.untyped_storage().nbytes()))
    with torch.autocast(device, torch.bfloat16, enabled=half):
        loss, _ = model.loss(batch.to(device))
    saved = ledger.live - start
    loss.backward()
    hook.remove()
    both = Need(*always, saved - logits[0], logits[0], 0, ledger.peak - start - saved)
    if not update:
        return both, None
    del loss, _
    start = ledger.peak = ledger.live
    optimizer.step()
    return both, Need(*always, 0, 0, 0, ledger.peak - start)


def prefilled(engine: Engine, contexts: list, max_new: int) -> tuple[torch.Tensor, Cache]:
    """(hidden of the last tokens, cache with room), as the engine begins a batch."""
    hidden, prompts = engine._prefill(contexts)
    cache = engine._cache(0, 0)
    cache.join(prompts, max_new)
    return hidden, cache


def generation(model: NanoKimi, ledger: Ledger, engine: Engine, contexts: list, max_new: int, kept: int = 0) -> Need:
    """Need of a prefill and of the decoding step that finds the cache full. kept: bytes of an optimizer that waits."""
    weights = ledger.live - kept
    ledger.peak = ledger.live
    with engine._evaluating(), torch.no_grad():                          # inference mode would hide the parts of composite operations
        hidden, cache = prefilled(engine, contexts, max_new)
        positions = torch.tensor([len(context.ids) for context in contexts], device=engine.device)
        tokens, _ = engine._choose(hidden, 1.0, torch.zeros(len(hidden), device=engine.device))
        cache.length = cache.capacity - 1
        hidden = model.language(model.language.embed(tokens)[:, None], positions[:, None], None, cache)[:, 0]
        engine._choose(hidden, 1.0, torch.zeros(len(hidden), device=engine.device))
    logits = 4 * len(hidden) * model.config.language.vocab
    latents = sum(latent.untyped_storage().nbytes() for latent in cache.latents)
    return Need(weights, 0, kept, 0, logits, latents, ledger.peak - weights - kept - logits - latents)


@contextmanager
def cut_as_on_a_gpu():
    """Newton-Schulz and log-probabilities take as much at a time as on a GPU, though tensors are called the CPU's."""
    with patch.dict(muon.CHUNK, cpu=muon.CHUNK["cuda"]), patch.dict(TokenLogProbs.CHUNK, cpu=TokenLogProbs.CHUNK["cuda"]):
        yield


@cut_as_on_a_gpu()
def pretraining(preset: Preset, tokenizer: Tokenizer) -> tuple[Need, Need]:
    """Needs of a shard and of the optimizer's step."""
    batch, _ = data.Batches("pretrain", tokenizer, preset.model.vision, 0, preset.documents, preset.length, 100).shard(99, 0)
    with dry_run() as ledger:
        return training(shell(preset, tokenizer.media_pad).train(), ledger, batch, half=True)


@cut_as_on_a_gpu()
def needs(preset: Preset, tokenizer: Tokenizer) -> dict[str, Need]:
    """What each stage of a preset needs on a GPU, as train.py (in bf16), rl.py and sample.py run it there."""
    vision, pad, out = preset.model.vision, tokenizer.media_pad, {}
    out["pretrain"], out["optimizer step"] = pretraining(preset, tokenizer)
    batch, _ = data.Batches("longctx", tokenizer, vision, 0, preset.longctx_documents, LONGER * preset.length, 100).shard(99, 0)
    with dry_run() as ledger:
        out["longctx"], _ = training(shell(preset, pad).train(), ledger, batch, half=True, update=False)
    batch, _ = data.Batches("sft", tokenizer, vision, 0, preset.sft_documents, preset.sft_length, 100).shard(99, 0)
    with dry_run() as ledger:
        model = shell(preset, pad).train()
        model.vision.requires_grad_(False), model.projector.requires_grad_(False)                # as in train.py
        out["sft"], _ = training(model, ledger, batch, half=True, update=False)
    with dry_run() as ledger:                                            # forward only: can be a GPU that is not there
        model = shell(preset, pad, "cuda")
        weights, engine = ledger.live, Engine(model, tokenizer)
        optimizer = MuonClip(model.named_parameters(), lr=1e-4, ns_dtype=torch.bfloat16)    # waits, with its states, while responses are sampled
        states(optimizer)
        groups = [rollout.start(engine, item, K, rollout.MAX_NEW, (0, n)) for n, item in enumerate(rollout.make_pool(PROBLEMS, 0.6, 0))]
        contexts = [talk.context() for group in groups for talk in group.talks]
        contexts.sort(key=lambda context: -len(context.ids))             # as the engine takes them, as many at a time as it takes
        first = contexts[:engine.most_rows(contexts)]
        out["rl: responses"] = generation(model, ledger, engine, first, rollout.MAX_NEW, kept=ledger.live - weights)
    for talk in (talk for group in groups for talk in group.talks):      # responses of full length
        talk.response.add([0] * rollout.MAX_NEW, [0.0] * rollout.MAX_NEW, True)
    micro = rollout.micro_batches(groups, [[0.0] * K] * PROBLEMS, vision.patch, tokenizer.pad, MICRO_TOKENS)[0]
    with dry_run() as ledger:
        out["rl: update"], _ = training(shell(preset, pad).train(), ledger, micro.batch, half=False, update=False)       # rl.py is in fp32
    with dry_run() as ledger:
        engine = Engine(shell(preset, pad, "cuda"), tokenizer)
        prompt = picture_prompt(engine)
        room = preset.model.language.context - len(prompt.ids)           # talk until the context is full
        out["sample"] = generation(engine.model, ledger, engine, [prompt], room)
    return out


def picture_prompt(engine: Engine):
    """A chat's beginning with one picture."""
    picture = prepare_image(np.zeros((96, 96, 3), np.uint8), engine.model.config.vision)
    return engine.tokenizer.render_chat([{"role": "user", "content": [picture, " what is in the picture?"]}], generate=True)


def text_needs(preset: Preset) -> dict[str, Need]:
    """For a vocabulary that nothing here fills: pre-training on rows of text alone, and a conversation's cache at full context."""
    cfg = preset.model.language
    ids = torch.arange(preset.length)[None].expand(preset.documents // data.SHARDS, -1)
    batch = Batch(ids, ids, ids, torch.ones_like(ids))
    with dry_run() as ledger:
        out = {"pretrain": training(shell(preset, cfg.vocab - 1).train(), ledger, batch, half=True, update=False)[0]}
    with dry_run() as ledger:
        Cache(cfg, 1, cfg.context, "cpu")
        cache = ledger.peak
    return out | {"sample": Need(out["pretrain"].weights, 0, 0, 0, 4 * cfg.vocab, cache, 0)}


# ---- the command -----------------------------------------------------------------------------------------------------------------------

def table(rows: dict[str, dict[str, Need]]) -> str:
    """Markdown, in GiB."""
    columns = [*Need.__annotations__, "peak"]
    lines = ["| preset | moment | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, moments in rows.items():
        for moment, need in moments.items():
            sizes = [getattr(need, column) / GIB for column in columns]
            lines.append(f"| {name} | {moment} | " + " | ".join(f"{size:,.2f}" if size else "" for size in sizes) + " |")
    return "\n".join(lines)


def parameters(preset: Preset) -> tuple[int, int]:
    """(all parameters, those that one token of text uses); without the table of token embeddings, as it is a lookup, in the second."""
    with torch.device("meta"):
        model = NanoKimi(preset.model, 0)
    cfg, count = preset.model.language, lambda module: sum(p.numel() for p in module.parameters())
    idle = (cfg.layers - cfg.dense_layers) * (cfg.experts - cfg.top_k) * 3 * cfg.dim * cfg.expert_ffn
    return count(model), count(model.language) - count(model.language.embed) - idle


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory that a preset needs, computed without running it (minutes for the large ones).")
    parser.add_argument("--preset", choices=PRESETS, nargs="+", default=["laptop", "consumer"])
    parser.add_argument("--readme", action="store_true", help="also write the table into README.md")
    args = parser.parse_args()
    rows, sizes = {}, []
    for name in args.preset:
        preset = PRESETS[name]
        vocab, patch = preset.model.language.vocab, preset.model.vision.patch
        small = vocab <= 4096                                            # what the world's text fills
        rows[name] = needs(preset, Tokenizer.train(data.corpus(2000), vocab, patch)) if small else text_needs(preset)
        total, active = parameters(preset)
        sizes.append(f"{name}: {total:,} parameters, {active:,} of them used by a token of text.")
    text = "\n".join([table(rows), "", "**Computed, not measured**, in GiB. " + " ".join(sizes)])
    print(text)
    if args.readme:
        readme, marks = Path(__file__).parent.parent / "README.md", re.compile(r"(<!-- memory -->\n).*?(\n<!-- /memory -->)", re.S)
        readme.write_text(marks.sub(lambda m: m[1] + text + m[2], readme.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
