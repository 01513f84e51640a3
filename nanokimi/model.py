"""NanoKimi = MoonViT-3D + projector + language model: forward, loss, save, load."""
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from nanokimi.checkpoint import read_json, write_json
from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig
from nanokimi.errors import BadInput, reading
from nanokimi.kernels import ALIGN, keep_freed_memory, token_logprobs
from nanokimi.language import LanguageModel
from nanokimi.vision import MoonViT3D, Projector

NO_LOSS = -100


@dataclass
class Batch:
    """Packed rows of documents and the patches of their clips, in reading order."""
    ids: torch.Tensor                       # (B, T) long
    targets: torch.Tensor                   # (B, T) long, -100 = no loss here
    positions: torch.Tensor                 # (B, T) long, restart in every document
    segments: torch.Tensor                  # (B, T) long, 0 = padding
    patches: torch.Tensor | None = None     # (P, 3 * patch * patch) uint8
    grid_thw: list = field(default_factory=list)
    media: torch.Tensor | None = None       # (M,) where documents share clips: which encoder output each media token takes
    denominator: int = 0                    # targets of the FULL batch; 0 = count this one
    rows: int = 0                           # rows of the FULL batch; 0 = count this one

    def __post_init__(self):
        self.denominator = self.denominator or int((self.targets != NO_LOSS).sum())
        self.rows = self.rows or len(self.ids)

    def to(self, device) -> "Batch":
        """The same batch on another device."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if isinstance(getattr(self, f.name), torch.Tensor)}
        return replace(self, **moved)


class NanoKimi(nn.Module):
    """The whole model. `media_pad` is the id that stands for one media token in `ids`."""

    def __init__(self, config: ModelConfig, media_pad: int):
        super().__init__()
        assert 0 <= media_pad < config.language.vocab, f"media_pad {media_pad} is outside the vocabulary of {config.language.vocab}"
        self.config, self.media_pad = config, media_pad
        self.vision = MoonViT3D(config.vision)
        self.projector = Projector(config.vision, config.language.dim)
        self.language = LanguageModel(config.language)

    def expect(self, tokenizer) -> None:
        """BadInput where this is not the tokenizer that the model was trained with."""
        ours, theirs = (self.config.language.vocab, self.media_pad), (tokenizer.vocab_size, tokenizer.media_pad)
        if ours != theirs:
            raise BadInput(f"the model has {ours[0]} tokens and pads media with {ours[1]}, the tokenizer {theirs[0]} and {theirs[1]}: "
                           "the folder mixes two runs, give another --run.")

    @torch.no_grad()
    def introduce(self, ids: list[int]) -> None:
        """Draws new embeddings for tokens that training has not shown: around the mean of the others, twice as long (ours: K2.5 does not say;
        structural tokens that training did show grow longer still). Left alone they are a tenth as long after weight decay, so that behind
        a large picture attention drowns which token it is, and a tool call ends in what the picture shows. Their rows of the head become
        the mean of the others: never to be said is all that these learned, and text alone takes it back behind text only."""
        weight = self.language.embed.weight                              # (V, d)
        known = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
        known[ids] = False
        spread = weight[known].norm(dim=1).median() / weight.shape[1] ** 0.5
        weight[ids] = weight[known].mean(0) + 2 * spread * torch.randn(len(ids), weight.shape[1]).to(weight)
        head = self.language.head.weight                                 # (V, d)
        head[ids] = head[known].mean(0)

    def embed(self, ids: torch.Tensor, patches: torch.Tensor | None = None, grid_thw: list = (), order: torch.Tensor | None = None):
        """Token embeddings (B, T, d) with the media rows put in, in order; with `order`, those rows of the encoder's output."""
        x = self.language.embed(ids)
        device = ids.device.type
        x = x.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else x
        where = ids == self.media_pad
        expected = sum(h * w // 4 for _, h, w in grid_thw) if order is None else len(order)
        assert int(where.sum()) == expected, f"{int(where.sum())} media tokens in ids, but the clips {list(grid_thw)} give {expected}"
        if not grid_thw:
            return x
        media = self.projector(self.vision(patches, list(grid_thw)))        # (M, d)
        media = media if order is None else media.index_select(0, order)
        return x.flatten(0, 1).index_copy(0, where.flatten().nonzero()[:, 0], media.to(x.dtype)).view_as(x)

    def forward(self, batch: Batch, aux: list | None = None) -> torch.Tensor:
        """-> hidden (B, T, d) after the final norm; `self.language.head` makes logits of it. `aux`: see LanguageModel."""
        x = self.embed(batch.ids, batch.patches, batch.grid_thw, batch.media)
        return self.language(x, batch.positions, batch.segments, aux=aux)

    def loss(self, batch: Batch) -> tuple[torch.Tensor, dict]:
        """(scalar fp32 = cross-entropy + balance loss, detached parts). Micro-batches of one full batch add up to its loss."""
        logprobs, aux = self.target_logprobs(batch)
        ce = -logprobs.sum() / max(1, batch.denominator)
        loss = ce + self.config.language.aux_alpha * aux
        return loss, {"ce": ce.detach(), "aux": aux.detach()}

    def target_logprobs(self, batch: Batch, temperature: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probabilities (n,) of the targets in reading order, fp32, at a sampling temperature; balance loss, 0 in eval mode)."""
        aux = []
        hidden = self(batch, aux=aux)
        where = (batch.targets != NO_LOSS).flatten().nonzero()[:, 0]        # the head runs here only: logits are what fills memory
        padded = F.pad(where, (0, -len(where) % ALIGN))                     # few shapes for the matmul; extra rows are cut off
        logits = self.language.head(hidden.flatten(0, 1).index_select(0, padded))[:len(where)]
        logits = logits if temperature == 1.0 else logits / temperature
        logprobs = token_logprobs(logits, batch.targets.flatten()[where])
        return logprobs, sum(aux, logprobs.new_zeros(())) / batch.rows      # per sequence = row, then the mean over rows


def with_language(model: NanoKimi, **changes) -> NanoKimi:
    """A new model with the same weights and other settings of the language model that no weight depends on: rope_factor, context, ..."""
    new = NanoKimi(replace(model.config, language=replace(model.config.language, **changes)), model.media_pad)
    new.load_state_dict(model.state_dict())
    device = model.language.head.weight.device
    choose_kernel(new, device)
    return new.to(device).train(model.training)


def choose_kernel(model: NanoKimi, device: torch.device | str) -> None:
    """Sets the expert and attention kernels this device can run. On a CPU also tunes malloc."""
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    else:                                                               # in bf16 its gradients were NaN behind rows of padding (H200, torch 2.11)
        torch.backends.cuda.enable_cudnn_sdp(False)
    new_enough = device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    experts = "grouped" if new_enough and hasattr(F, "grouped_mm") else "loop"
    attention = "sdpa" if device.type == "cuda" else "manual"
    for block in model.vision.layers:
        block.attn.kernel = attention
    for layer in model.language.layers:
        layer.attn.kernel = attention
        if layer.moe is not None:
            layer.moe.kernel = experts


def save(model: NanoKimi, path: Path | str) -> None:
    """Writes config.json and then model.safetensors into the directory `path`; the weights appear whole or not at all."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / "config.json", {"media_pad": model.media_pad, **asdict(model.config)})
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path / "model.partial")
    os.replace(path / "model.partial", path / "model.safetensors")


def load(path: Path | str, device: torch.device | str = "cpu") -> NanoKimi:
    """The model that `save` wrote, in eval mode, kernels chosen for `device`. BadInput if `path` is no model directory, or a damaged one."""
    path = Path(path)
    text = read_json(path / "config.json", "vision", "language", "media_pad")
    with reading(path / "model.safetensors", "put it back as it was, or take another stage"):
        tensors = load_file(path / "model.safetensors")
        config = ModelConfig(VisionConfig(**text["vision"]), LanguageConfig(**text["language"]))
        check_weights(config, text["media_pad"], tensors)
        model = NanoKimi(config, text["media_pad"])
        model.load_state_dict(tensors)
    choose_kernel(model, device)
    return model.to(device).eval()


def check_weights(config: ModelConfig, media_pad: int, tensors: dict[str, torch.Tensor]) -> None:
    """ValueError where tensors are not this configuration's, or not finite; before memory is taken for whatever a file claims."""
    layers = config.vision.layers + config.language.layers
    if not 0 < layers <= len(tensors):
        raise ValueError(f"{layers} layers, {len(tensors)} tensors")
    with torch.device("meta"):
        wanted = NanoKimi(config, media_pad).state_dict()
    differs = sorted(wanted.keys() ^ tensors.keys()) or [name for name, x in wanted.items() if x.shape != tensors[name].shape]
    if differs:
        raise ValueError(f"{differs[0]} is missing, unknown or of another shape")
    broken = [name for name, x in tensors.items() if not x.is_floating_point() or not x.isfinite().all()]
    if broken:
        raise ValueError(f"{broken[0]} has values that are no finite numbers")
