"""Byte-pair encoding and K2.5's prompt format, with the loss mask (its released chat template).

rustbpe trains the merges, tiktoken runs them. Special tokens are written here and nowhere else: `encode` never yields a special id,
whatever the text says, so a user who types "<|im_end|>" has typed ten ordinary characters. Left out: [UNK], [EOT] and header ids, which
the K2.5 format never uses.
"""
import base64
import json
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Iterable

import rustbpe
import tiktoken

from .errors import reading

# K2's split, except that digits stand alone (K2: \p{N}{1,3}). Ours: a thousand number tokens cannot be learned in minutes, ten can.
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join([
    r"[\p{Han}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+" + SUFFIX,
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*" + SUFFIX,
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])

# attribute of Tokenizer -> K2.5's spelling; ids follow the merges in this order
SPECIALS = {
    "bos": "[BOS]", "eos": "[EOS]", "im_end": "<|im_end|>", "im_user": "<|im_user|>", "im_assistant": "<|im_assistant|>",
    "im_system": "<|im_system|>", "im_middle": "<|im_middle|>",
    "section_begin": "<|tool_calls_section_begin|>", "section_end": "<|tool_calls_section_end|>", "call_begin": "<|tool_call_begin|>",
    "call_argument": "<|tool_call_argument_begin|>", "call_end": "<|tool_call_end|>",
    "media_begin": "<|media_begin|>", "media_content": "<|media_content|>", "media_end": "<|media_end|>", "media_pad": "<|media_pad|>",
    "think": "<think>", "end_think": "</think>", "pad": "[PAD]",
}
CHAT = ("im_end", "im_user", "im_assistant", "im_system", "im_middle", "section_begin", "section_end", "call_begin", "call_argument", "call_end",
        "think", "end_think")           # those that no document of pre-training holds
FILE = "tokenizer.tiktoken"


class Learn(str):
    """A piece of a pre-training document that is trained on; a plain `str` there is context. With `shown`, a text of as many tokens, the
    model reads that one instead: what comes next must not be read off this piece."""
    shown = None

    def __new__(cls, text, shown=None):
        piece = super().__new__(cls, text)
        piece.shown = shown
        return piece


@dataclass
class Rendered:
    """Token ids, which of them are trained on, and the clips behind the media_pad tokens, all in reading order."""
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    clips: list = field(default_factory=list)      # VisionClip
    shown: dict = field(default_factory=dict)      # place: token that the model reads there, where it is not the one that is learned

    def add(self, ids, learn: bool = False) -> "Rendered":
        """Append tokens that are all learned or all context."""
        self.ids.extend(ids)
        self.mask.extend([learn] * len(ids))
        return self


class Tokenizer:
    """Byte-level BPE plus the K2.5 prompt format. Special ids are attributes: tok.eos, tok.im_end, tok.media_pad, ... (see SPECIALS).

    ranks: bytes -> id, all 256 bytes included. patch: pixels a side of a patch, which decides how many media tokens a clip takes.
    """

    def __init__(self, ranks: dict[bytes, int], patch: int = 8):
        assert sorted(ranks.values()) == list(range(len(ranks))), "merge ranks must be 0 .. n-1"
        self.ranks, self.patch = ranks, patch
        self.special_ids = {text: len(ranks) + i for i, text in enumerate(SPECIALS.values())}
        for name, text in SPECIALS.items():
            setattr(self, name, self.special_ids[text])
        self.vocab_size = len(ranks) + len(SPECIALS)
        self.stop_ids = (self.im_end, self.eos)
        self.chat_ids = [getattr(self, name) for name in CHAT]
        self._bpe = tiktoken.Encoding("nanokimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=self.special_ids)
        self._cached = lru_cache(maxsize=16384)(lambda text: tuple(self._bpe.encode_ordinary(text)))  # prompts repeat a lot

    def __reduce__(self):  # so that data workers can be spawned as well as forked
        return Tokenizer, (self.ranks, self.patch)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, patch: int = 8) -> "Tokenizer":
        """Learn `vocab_size` tokens, specials included. Raises ValueError if the texts hold too few distinct pairs for that."""
        merges = vocab_size - len(SPECIALS)
        if merges < 256:
            raise ValueError(f"vocab_size {vocab_size} is below {256 + len(SPECIALS)}: 256 bytes and {len(SPECIALS)} special tokens")
        bpe = rustbpe.Tokenizer()
        bpe.train_from_iterator(iter(texts), merges, pattern=PATTERN)
        ranks = {bytes(token): rank for token, rank in bpe.get_mergeable_ranks()}
        if len(ranks) != merges:
            raise ValueError(f"these texts give only {len(ranks) + len(SPECIALS)} of the {vocab_size} tokens asked for: use more text")
        return cls(ranks, patch)

    def save(self, directory: str | Path) -> None:
        """Write `tokenizer.tiktoken`: one line a token, base64 and rank. Special tokens are derived, not stored."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(self.ranks.items(), key=lambda item: item[1])]
        partial = Path(directory) / f"{FILE}.partial"
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, Path(directory) / FILE)                      # whole or not at all

    @classmethod
    def load(cls, directory: str | Path, patch: int = 8) -> "Tokenizer":
        """Read what `save` wrote. Raises FileNotFoundError if there is no tokenizer in the directory, BadInput if it is damaged."""
        path = Path(directory) / FILE
        with reading(path):
            pairs = (line.split() for line in path.read_text().splitlines())
            ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
            if not {bytes([i]) for i in range(256)} <= ranks.keys() or sorted(ranks.values()) != list(range(len(ranks))):
                raise ValueError("tokens are missing")
        return cls(ranks, patch)

    # ---------------------------------------------------------------- text
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, which is only ever text: "<|im_end|>" becomes ordinary tokens."""
        return list(self._cached(str(text)))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens show in K2.5's spelling, bytes that are no UTF-8 as U+FFFD."""
        return self._bpe.decode(list(ids))

    # ---------------------------------------------------------------- media and documents
    def render_parts(self, out: Rendered, parts, learn: bool = False) -> Rendered:
        """Append text and media. parts: str, clip, or a list of str | clip | list of clips (a video's chunks)."""
        for part in parts if isinstance(parts, list) else [parts]:
            if isinstance(part, str):
                if isinstance(part, Learn) and part.shown:
                    assert len(self._cached(part.shown)) == len(self._cached(str(part))), f"{part!r} and {part.shown!r} differ in tokens"
                    out.shown |= dict(enumerate(self._cached(part.shown), len(out.ids)))
                out.add(self._cached(str(part)), learn or isinstance(part, Learn))
            elif isinstance(part, list):
                self.render_parts(out, part)
            else:
                self._render_clip(out, part)
        return out

    def _render_clip(self, out: Rendered, clip) -> None:
        """One media block, never trained on. Each chunk of a video has its own, after the time of its first frame."""
        if clip.kind == "video":
            out.add(self._cached(timestamp(clip.seconds)))
        out.add((self.media_begin, *self._cached(clip.kind), self.media_content))
        out.add([self.media_pad] * clip.tokens(self.patch))
        out.add((self.media_end,))
        out.clips.append(clip)

    def render_document(self, parts: list) -> Rendered:
        """A pre-training document: parts, then eos. Learn(text) is trained on, str is context; eos is learned if the last part is."""
        out = self.render_parts(Rendered(), parts)
        return out.add((self.eos,), isinstance(parts[-1], Learn))

    # ---------------------------------------------------------------- chat
    def render_chat(self, messages: list[dict], tools: list[dict] | None = None, thinking: bool = True, generate: bool = False) -> Rendered:
        """K2.5's chat format; only what the assistant itself has to write is trained on.

        messages: {"role": system|user|assistant|tool, "content": str or parts}; an assistant may have "thinking": str and "tool_calls":
        [{"name", "arguments": dict}]; tool messages answer the calls before them, in order. tools: [{"name", "description", "parameters"}].
        Thinking before the last user message is dropped, and everywhere with thinking=False; a turn that lost its thinking is not learned.
        generate=True ends with the assistant's header and <think> (or <think></think>): the prompt to continue.
        Raises ValueError for an unknown role or a tool result without a call.
        """
        out, calls, answered = Rendered(), 0, 0
        if tools:
            self._turn(out, self.im_system, "tool_declare", declare_tools(tools))
        last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
        names = [call["name"] for m in messages for call in m.get("tool_calls", ())]
        for i, message in enumerate(messages):
            role = message["role"]
            if role in ("system", "user"):
                self._turn(out, self.im_system if role == "system" else self.im_user, role, message["content"])
            elif role == "assistant":
                calls += self._assistant(out, message, thinking and i > last_user, calls)
            elif role == "tool":
                if answered >= calls:
                    raise ValueError(f"message {i} is a tool result, but no tool call before it waits for one")
                self._result(out, names[answered], answered, message["content"])
                answered += 1
            else:
                raise ValueError(f"message {i} has role {role!r}; known are system, user, assistant, tool")
        return self._open(out, thinking) if generate else out

    def render_results(self, names: list[str], contents: list, first: int = 0, thinking: bool = True) -> Rendered:
        """What follows an assistant turn with tool calls number first, first+1, ...: their results and the next assistant header."""
        out = Rendered()
        for i, (name, content) in enumerate(zip(names, contents, strict=True)):
            self._result(out, name, first + i, content)
        return self._open(out, thinking)

    def _turn(self, out: Rendered, start: int, name: str, content) -> None:
        out.add((start, *self._cached(name), self.im_middle))
        self.render_parts(out, content)
        out.add((self.im_end,))

    def _result(self, out: Rendered, name: str, index: int, content) -> None:
        content = content if isinstance(content, list) else [content]
        self._turn(out, self.im_system, f"{name}|tool", [f"## Return of functions.{name}:{index}\n", *content])

    def _open(self, out: Rendered, thinking: bool) -> Rendered:
        out.add((self.im_assistant, *self._cached("assistant"), self.im_middle, self.think))
        return out if thinking else out.add((self.end_think,))

    def _assistant(self, out: Rendered, message: dict, keep_thinking: bool, first_call: int) -> int:
        """One assistant turn; returns its number of tool calls. The prompt writes <think> (instant: <think></think>), so neither is
        learned: a model trained on the instant </think> would stop thinking before it starts."""
        thought = message.get("thinking")
        thinks = keep_thinking and thought is not None
        learn = thinks or thought is None
        self._open(out, thinks)
        if thinks:
            out.add((*self._cached(thought), self.end_think), True)
        self.render_parts(out, message["content"], learn)
        calls = message.get("tool_calls", [])
        if calls:
            out.add(self._calls(calls, first_call), learn)
        out.add((self.im_end,), learn)
        return len(calls)

    def _calls(self, calls: list[dict], first: int) -> list[int]:
        ids = [self.section_begin]
        for i, call in enumerate(calls):
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            ids += [self.call_begin, *self._cached(f"functions.{call['name']}:{first + i}"),
                    self.call_argument, *self._cached(arguments), self.call_end]
        return ids + [self.section_end]

    # ---------------------------------------------------------------- reading a response
    def thinks(self, prompt: Rendered) -> bool:
        """Whether a prompt ends in an opened thought."""
        return prompt.ids[-1] == self.think

    def parse_response(self, ids: list[int], opened: bool = False) -> dict:
        """Split a response into {"thinking": str|None, "content": str, "tool_calls": [{"name", "arguments"}], "well_formed": bool}.

        ids: what the model wrote, im_end included if it came. opened: the prompt ended with <think>, so all is thinking until </think>.
        well_formed: it ended with im_end, closed its thinking once, used no stray special token, and its calls parse. Never raises.
        """
        body, ended = (ids[:-1], True) if ids and ids[-1] in self.stop_ids else (ids, False)
        thinking, rest = None, body
        if self.end_think in body:
            cut = body.index(self.end_think)
            thinking, rest = body[:cut], body[cut + 1:]
        elif opened:
            thinking, rest = body, []
        cut = rest.index(self.section_begin) if self.section_begin in rest else len(rest)
        content, calls = rest[:cut], self._parse_calls(rest[cut:])
        closed = opened == (thinking is not None) and (not opened or self.end_think in body)
        plain = all(i < len(self.ranks) for i in [*(thinking or []), *content])
        return {"thinking": None if thinking is None else self.decode(thinking), "content": self.decode(content),
                "tool_calls": calls or [], "well_formed": ended and ids[-1] == self.im_end and closed and plain and calls is not None}

    def _parse_calls(self, ids: list[int]) -> list[dict] | None:
        """Calls of a section (none for no ids), or None where the section is malformed."""
        if not ids:
            return []
        if ids[-1] != self.section_end or len(ids) < 3:
            return None
        calls, rest = [], ids[1:-1]
        while rest:
            if rest[0] != self.call_begin or self.call_end not in rest:
                return None
            end = rest.index(self.call_end)
            call = self._parse_call(rest[1:end])
            if call is None:
                return None
            calls.append(call)
            rest = rest[end + 1:]
        return calls

    def _parse_call(self, ids: list[int]) -> dict | None:
        if ids.count(self.call_argument) != 1 or sum(i >= len(self.ranks) for i in ids) != 1:
            return None
        cut = ids.index(self.call_argument)
        name, _, index = self.decode(ids[:cut]).partition(":")
        try:
            arguments = json.loads(self.decode(ids[cut + 1:]))
        except (ValueError, RecursionError):  # the model's own text: anything can stand here
            return None
        if not (name.startswith("functions.") and index.isdecimal() and isinstance(arguments, dict)):
            return None
        return {"name": name.removeprefix("functions."), "arguments": arguments}


def timestamp(seconds: float) -> str:
    """HH:MM:SS.mmm, K2.5's time of a chunk's first frame."""
    ms = int(seconds * 1000 + 1e-6)  # truncated as upstream; the epsilon repairs 0.57 * 1000 = 569.99...
    return f"{ms // 3600000:02d}:{ms // 60000 % 60:02d}:{ms // 1000 % 60:02d}.{ms % 1000:03d}"


def declare_tools(tools: list[dict]) -> str:
    """Tools as TypeScript, after K2.5's renderer. tools: [{"name", "description", "parameters": JSON schema of an object}]."""
    return "# Tools\n\n## functions\nnamespace functions {\n" + "\n".join(map(_declare, tools)) + "\n}\n"


def _declare(tool: dict) -> str:
    schema = tool["parameters"]
    lines = [f"// {line}" for line in tool["description"].splitlines()] + [f"type {tool['name']} = (_: {{"]
    for name, value in schema["properties"].items():
        lines += [f"  // {line}" for line in value.get("description", "").splitlines()]
        lines.append(f"  {name}{'' if name in schema.get('required', ()) else '?'}: {_typescript(value)},")
    return "\n".join([*lines, "}) => any;"])


def _typescript(schema: dict) -> str:
    """The TypeScript name of a JSON schema type (nested objects are left out: no tool here has one)."""
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if schema["type"] == "array":
        return f"Array<{_typescript(schema['items'])}>"
    return {"integer": "number"}.get(schema["type"], schema["type"])
