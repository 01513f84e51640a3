"""At home in transformers: a run as a folder that `from_pretrained` loads as it is, and such a folder back as a run.

    python -m nanokimi.hf export runs/nano DIR                  everything: weights, tokenizer, chat template, processors, model card
    python -m nanokimi.hf export runs/nano DIR --text-only      the language model alone, a DeepseekV3ForCausalLM
    python -m nanokimi.hf import DIR runs/new                   back, also from what transformers saved at other sizes

Files are written without transformers. Safetensors only: loading a folder runs no code. docs/INTEROP.md tells what was tried with it.
"""
import argparse
import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from . import plan, released
from .checkpoint import need, newest_stage, read_json, write_json
from .errors import BadInput, command, reading
from .model import NanoKimi, check_weights, load, save
from .tokenizer import PATTERN, SPECIALS, Tokenizer

VIDEO = "<|kimi_k25_video_placeholder|>"        # transformers' own token for clips; our format has one pad token for both, as upstream
KEPT = ("think", "end_think", "section_begin", "section_end", "call_begin", "call_argument", "call_end")    # seen in decoded text
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


# ---- tokenizer -------------------------------------------------------------------------------------------------------------------------

def byte_letters() -> dict[int, str]:
    """Byte -> the printable character that stands for it in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that each token was merged from, in order: what is left of its bytes when only earlier merges are allowed."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
            best = min(range(len(pairs)), key=pairs.__getitem__)
            parts[best:best + 2] = [parts[best] + parts[best + 1]]
        if len(parts) == 2:
            merges.append(tuple(parts))
    return merges


def tokenizer_json(tokenizer: Tokenizer, video: bool) -> dict:
    """tokenizer.json of the `tokenizers` library: the same ids for the same text. video: with transformers' token for clips."""
    letters = byte_letters()
    spell = lambda token: "".join(letters[byte] for byte in token)
    kept = {SPECIALS[name] for name in KEPT}
    added = tokenizer.special_ids | ({VIDEO: tokenizer.vocab_size} if video else {})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": byte_level,
            "added_tokens": [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                              "special": text not in kept} for text, i in added.items()],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, byte_level]},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": {spell(token): rank for token, rank in tokenizer.ranks.items()},
                      "merges": [[spell(a), spell(b)] for a, b in merges_of(tokenizer.ranks)]}}


def read_tokenizer(folder: Path, patch: int) -> Tokenizer:
    """The tokenizer of a folder. BadInput if it is not one of ours."""
    content = json.loads(existing(folder / "tokenizer.json").read_text("utf-8"))
    back = {letter: byte for byte, letter in byte_letters().items()}
    special = {token["content"]: token["id"] for token in content["added_tokens"]}
    vocab = content["model"]["vocab"]
    words = {word: rank for word, rank in vocab.items() if word not in special} if isinstance(vocab, dict) else {"": 0}
    if not all(word and set(word) <= set(back) for word in words) or sorted(words.values()) != list(range(len(words))):
        raise BadInput(f"{folder / 'tokenizer.json'} is no byte-level BPE whose tokens are numbered from 0")
    tokenizer = Tokenizer({bytes(back[c] for c in word): rank for word, rank in words.items()}, patch)
    if not tokenizer.special_ids.items() <= special.items():
        raise BadInput(f"{folder / 'tokenizer.json'} has other special tokens than K2.5's format here: {sorted(special)[:5]} ...")
    return tokenizer


# ---- settings --------------------------------------------------------------------------------------------------------------------------

TEMPLATE = """\
{%- macro content(message) -%}
{%- if message.content is string -%}{{ message.content }}
{%- elif message.content -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<|media_begin|>image<|media_content|><|media_pad|><|media_end|>
{%- elif part.type == 'video' -%}<|kimi_k25_video_placeholder|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro type_of(schema) -%}
{%- if schema.enum -%}{%- for value in schema.enum -%}{{ value | tojson }}{{ ' | ' if not loop.last }}{%- endfor -%}
{%- elif schema.type == 'array' -%}Array<{{ type_of(schema['items']) }}>
{%- elif schema.type == 'integer' -%}number
{%- else -%}{{ schema.type }}{%- endif -%}
{%- endmacro -%}
{%- macro declare(tool) -%}
{%- for line in tool.description.splitlines() -%}{{ '// ' + line + '\\n' }}{%- endfor -%}
{{ 'type ' + tool.name + ' = (_: {\\n' }}
{%- for name, value in tool.parameters.properties.items() -%}
{%- for line in (value.description or '').splitlines() -%}{{ '  // ' + line + '\\n' }}{%- endfor -%}
{{ '  ' + name + ('' if name in (tool.parameters.required or []) else '?') + ': ' + type_of(value) + ',\\n' }}
{%- endfor -%}
{{ '}) => any;' }}
{%- endmacro -%}
{%- set thinks = thinking is not defined or thinking -%}
{%- set count = namespace(user=-1, calls=0, answers=0, names=[]) -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set count.user = loop.index0 -%}{%- endif -%}
{%- for call in message.tool_calls or [] -%}{%- set count.names = count.names + [(call.function or call).name] -%}{%- endfor -%}
{%- endfor -%}
{%- if tools -%}
{{ '<|im_system|>tool_declare<|im_middle|># Tools\\n\\n## functions\\nnamespace functions {\\n' }}
{%- for tool in tools -%}{{ declare(tool.function or tool) }}{{ '\\n' }}{%- endfor -%}
{{ '}\\n<|im_end|>' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{ '<|im_assistant|>assistant<|im_middle|><think>' }}
{%- if thinks and loop.index0 > count.user and message.reasoning_content -%}{{ message.reasoning_content }}{%- endif -%}
{{ '</think>' }}{{ content(message) }}
{%- if message.tool_calls -%}
{{ '<|tool_calls_section_begin|>' }}
{%- for call in message.tool_calls -%}
{%- set function = call.function or call -%}
{%- set arguments = function.arguments if function.arguments is string else function.arguments | tojson -%}
{{ '<|tool_call_begin|>functions.' ~ function.name ~ ':' ~ count.calls ~ '<|tool_call_argument_begin|>' ~ arguments ~ '<|tool_call_end|>' }}
{%- set count.calls = count.calls + 1 -%}
{%- endfor -%}
{{ '<|tool_calls_section_end|>' }}
{%- endif -%}
{%- elif message.role == 'tool' -%}
{%- if count.answers >= count.calls -%}{{ raise_exception('a tool result, but no tool call before it waits for one') }}{%- endif -%}
{%- set name = count.names[count.answers] -%}
{{ '<|im_system|>' ~ name ~ '|tool<|im_middle|>## Return of functions.' ~ name ~ ':' ~ count.answers ~ '\\n' }}{{ content(message) }}
{%- set count.answers = count.answers + 1 -%}
{%- elif message.role in ['system', 'user'] -%}
{{ '<|im_' ~ message.role ~ '|>' ~ message.role ~ '<|im_middle|>' }}{{ content(message) }}
{%- else -%}{{ raise_exception('unknown role ' ~ message.role) }}
{%- endif -%}
{{ '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_assistant|>assistant<|im_middle|><think>' }}{{ '' if thinks else '</think>' }}{%- endif -%}
"""


def settings_of(model: NanoKimi, tokenizer: Tokenizer, dtype: str) -> dict[str, dict]:
    """File name -> content of every JSON file but the tokenizer's, for the whole model."""
    config = released.kimi_k25_config(model.config, model.media_pad)
    config["text_config"] |= token_ids(tokenizer)
    return {"config.json": {"architectures": ["Kimi_K25ForConditionalGeneration"], "model_type": "kimi_k25", "dtype": dtype,
                            "vision_start_token_id": tokenizer.media_begin, "vision_end_token_id": tokenizer.media_end, **config},
            "processor_config.json": {"processor_class": "Kimi_K25Processor", **processors(model.config.vision)}}


def processors(v) -> dict[str, dict]:
    """What is done to pixels before the encoder: VisionConfig -> settings of the image and the video processor."""
    pixels = {"do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
              "image_std": [0.5] * 3, "merge_size": 2, "patch_size": v.patch, "resample": 3, "rescale_factor": 1 / 255,
              "size": {"max_height": v.max_side_patches, "max_width": v.max_side_patches}}       # in patches, as upstream
    images = pixels | {"image_processor_type": "Kimi_K25ImageProcessor", "max_patches": v.max_image_patches}
    videos = pixels | {"video_processor_type": "Kimi_K25VideoProcessor", "max_patches": v.max_frame_patches, "fps": 2,
                       "do_sample_frames": True, "temporal_patch_size": v.frames}
    return {"image_processor": images, "video_processor": videos}


def token_ids(tokenizer: Tokenizer) -> dict:
    """Special ids of the language model's configuration; no token marks a beginning."""
    return {"bos_token_id": None, "eos_token_id": tokenizer.im_end, "pad_token_id": tokenizer.pad}


def shared_settings(tokenizer: Tokenizer, context: int, processor: dict) -> dict[str, dict]:
    """File name -> content of what both kinds of folder have."""
    return {"tokenizer_config.json": {"tokenizer_class": "TokenizersBackend", "bos_token": None, "eos_token": SPECIALS["im_end"],
                                      "pad_token": SPECIALS["pad"], "unk_token": None, "clean_up_tokenization_spaces": False,
                                      "model_max_length": context, **processor},
            "generation_config.json": {"do_sample": False, "eos_token_id": list(tokenizer.stop_ids), "pad_token_id": tokenizer.pad}}


# ---- folders ---------------------------------------------------------------------------------------------------------------------------

def export(run: Path, folder: Path, stage: str | None = None, dtype: str = "fp32", text_only: bool = False) -> None:
    """Writes a stage of a run (default: the newest) as a folder for transformers. BadInput if the run has no such stage, or the folder holds
    something else."""
    if folder.exists() and any(folder.iterdir()) and not (folder / "chat_template.jinja").exists():
        raise BadInput(f"{folder} holds files that are no earlier export, and some would be overwritten: name a new folder.")
    if stage is not None:
        need(run, stage)
    source = newest_stage(run) if stage is None else run / stage
    model = load(source)
    tokenizer = Tokenizer.load(run / "tokenizer", model.config.vision.patch)
    model.expect(tokenizer)
    write_folder(model, tokenizer, folder, dtype, text_only)
    (folder / "README.md").write_text(model_card(run, source.name, model, text_only), encoding="utf-8")


def write_folder(model: NanoKimi, tokenizer: Tokenizer, folder: Path, dtype: str = "fp32", text_only: bool = False) -> None:
    """Weights, tokenizer, chat template and settings."""
    name = str(DTYPES[dtype]).removeprefix("torch.")
    if text_only:
        tensors = released.to_deepseek_v3(model.state_dict(), model.config)
        text = released.deepseek_v3_config(model.config.language) | token_ids(tokenizer)
        files, processor = {"config.json": {"architectures": ["DeepseekV3ForCausalLM"], "dtype": name, **text}}, {}
    else:
        tensors = released.to_kimi_k25(model.state_dict(), model.config)
        files, processor = settings_of(model, tokenizer, name), {"processor_class": "Kimi_K25Processor"}
    files |= shared_settings(tokenizer, model.config.language.context, processor)
    files["tokenizer.json"] = tokenizer_json(tokenizer, video=not text_only)
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        write_json(folder / file, content)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    bias = "e_score_correction_bias"                                     # decides which experts are chosen: stays fp32, as released
    save_file({key: x if key.endswith(bias) else x.to(DTYPES[dtype]) for key, x in tensors.items()}, folder / "model.partial",
              metadata={"format": "pt"})
    os.replace(folder / "model.partial", folder / "model.safetensors")


def bring_back(folder: Path, run: Path, stage: str) -> None:
    """Reads a folder that `export` or transformers' save_pretrained wrote (model and processor) into a stage of a run. BadInput or
    FileNotFoundError, in one sentence, where it is not a model of this kind."""
    config = read_json(existing(folder / "config.json"))
    if config.get("model_type") != "kimi_k25":
        raise BadInput(f"{folder} holds a {config.get('model_type')}; only whole kimi_k25 models come back")
    if (run / stage).exists():
        raise BadInput(f"{run / stage} exists already: give another run, or --stage with another name")
    processor = read_json(existing(folder / "processor_config.json"), "image_processor", "video_processor")
    with reading(folder):
        cfg, tokenizer, tensors = read_folder(folder, config, processor)
    if (run / "tokenizer").exists() and Tokenizer.load(run / "tokenizer").ranks != tokenizer.ranks:
        raise BadInput(f"{run} has another tokenizer: give another run")
    model = NanoKimi(cfg, tokenizer.media_pad)
    model.load_state_dict(tensors)
    tokenizer.save(run / "tokenizer")
    save(model, run / stage)


def read_folder(folder: Path, config: dict, processor: dict) -> tuple:
    """(ModelConfig, Tokenizer, tensors by our names) of a folder, checked against each other."""
    cfg = released.from_config(config, processor["image_processor"], processor["video_processor"])
    if differs := released.differences(processors(cfg.vision), processor):
        raise BadInput(f"its pixels are prepared differently from ours: {'; '.join(differs[:5])}")
    tokenizer = read_tokenizer(folder, cfg.vision.patch)
    if (tokenizer.vocab_size, tokenizer.media_pad) != (cfg.language.vocab, config["image_token_id"]):
        raise BadInput(f"the tokenizer has {tokenizer.vocab_size} tokens and pads media with {tokenizer.media_pad}, the configuration says "
                         f"{cfg.language.vocab} and {config['image_token_id']}")
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):                    # one file, or several shards
        tensors |= load_file(path)
    tensors = released.from_kimi_k25(tensors, cfg)
    check_weights(cfg, tokenizer.media_pad, tensors)
    return cfg, tokenizer, tensors


def existing(path: Path) -> Path:
    """The path, if there is such a file. FileNotFoundError in one sentence."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    return path


def model_card(run: Path, stage: str, model: NanoKimi, text_only: bool) -> str:
    """README.md of a folder: what it is, its report card if the run has one, where the data came from."""
    tuned = (run / stage / "own.json").is_file()                         # on somebody's own files: what they hold, their owner knows
    size = sum(p.numel() for p in (model.language if text_only else model).parameters()) / 1e6
    library = "AutoModelForCausalLM" if text_only else "AutoModelForImageTextToText"
    lines = ["---", "library_name: transformers", f"pipeline_tag: {'text-generation' if text_only else 'image-text-to-text'}",
             "tags: [nanokimi, educational]", "language: en", *(() if tuned else ("license: mit",)), "---", f"# nanokimi, {size:.1f} million parameters",
             "", f"Trained from nothing by nanokimi (stage `{stage}`), an educational replica of Kimi K2.5 and k1.5. Not affiliated with "
             "Moonshot AI; contains no weights of theirs. It knows small pictures of coloured shapes, pictograms, flags and handwritten "
             f"digits, capitals and sums to 999, and {'what the files of whoever trained it further hold' if tuned else 'nothing else'}. "
             f"Load it with `{library}`.", ""]
    report = run / "report.json"
    if report.is_file():
        card = json.loads(report.read_text())
        lines += [f"## Report card of the run ({card['split']} split, {card['problems']} problems a row, base and cold start)", "",
                  "| row | value |", "|---|---|", *(f"| {name} | {value:.3f} |" for name, value in card["rows"].items()), ""]
    return "\n".join([*lines, "## Training data", "", "Drawn scenes and clips; pictograms and flags of OpenMoji (CC BY-SA 4.0); lead "
                      "paragraphs of English Wikipedia (CC BY-SA 4.0); handwritten digits of the UCI repository (E. Alpaydin, C. Kaynak)."
                      + (" Then files of somebody's own, whose licences are not known here." if tuned else ""), ""])


@command
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="To transformers and back.")
    commands = parser.add_subparsers(dest="command", required=True)
    out = commands.add_parser("export", help="a run as a folder for transformers")
    out.add_argument("run", type=Path)
    out.add_argument("folder", type=Path)
    out.add_argument("--stage", help="pretrain, sft, rl, short (default: the newest)")
    out.add_argument("--dtype", choices=DTYPES, default="fp32")
    out.add_argument("--text-only", action="store_true", help="the language model alone, as deepseek_v3")
    back = commands.add_parser("import", help="a folder of transformers as a run")
    back.add_argument("folder", type=Path)
    back.add_argument("run", type=Path)
    back.add_argument("--stage", default="sft", help="name of the stage in the run")
    args = parser.parse_args()
    if args.command == "export":
        export(args.run, args.folder, args.stage, args.dtype, args.text_only)
    else:
        bring_back(args.folder, args.run, args.stage)
    plan.say(f"written: {args.folder if args.command == 'export' else args.run / args.stage}")


if __name__ == "__main__":
    main()
