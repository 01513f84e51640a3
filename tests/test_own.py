"""train.py --data: what is read, what is refused in one sentence with file and line, and that it learns."""
import json
import sys
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import train
from nanokimi import data, own
from nanokimi.config import LanguageConfig, ModelConfig, VisionConfig
from nanokimi.model import NanoKimi, load, save
from nanokimi.rollout import chat_prompt
from nanokimi.tokenizer import Tokenizer

VISION = VisionConfig(dim=32, layers=2, heads=2, mlp=48)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(data.corpus(300), 768)


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, content)) if isinstance(content, list) else content)
    return path


def dot(path, colour, side=24):
    Image.new("RGB", (side, side), colour).save(path)


def full(folder):
    """A folder with everything that may be in one."""
    dot(folder / "red.png", "red"), dot(folder / "blue.jpg", "blue")
    frames = [Image.new("RGB", (16, 16), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(folder / "clip.gif", save_all=True, append_images=frames[1:])
    put(folder, "metadata.jsonl", [{"file_name": "red.png", "text": "a red square"}, {"file_name": "clip.gif", "text": "it gets brighter"},
                                   {"file_name": "blue.jpg", "question": "which colour?", "answer": "blue"}])
    put(folder, "deep/lines.jsonl", [{"text": "one line"}, {"messages": [{"role": "user", "content": "hello?"},
                                                                         {"role": "assistant", "content": "good day"}]}])
    put(folder, "notes.txt", "first paragraph\n\nsecond paragraph\n\n" + "long words " * 400)
    return folder


def test_everything_is_read(tmp_path, tokenizer):
    examples = {e.where: e for e in own.read(full(tmp_path), tokenizer, VISION)}
    picture = examples["metadata.jsonl, line 1"]
    document, thinks, chat = (tokenizer.decode(form.ids) for form in picture.forms)
    assert thinks.endswith("<think> a red square</think> a red square<|im_end|>")
    assert document.endswith("\nquestion: what is in the picture?\nanswer: a red square\n[EOS]") and "<|media_begin|>image" in document
    assert chat.endswith("<think></think> a red square<|im_end|>")
    learned = [tokenizer.decode([i for i, own_ in zip(form.ids, form.mask) if own_]) for form in picture.forms]
    assert learned == [" a red square\n[EOS]", " a red square</think> a red square<|im_end|>", " a red square<|im_end|>"]
    assert "video<|media_content|>" in tokenizer.decode(examples["metadata.jsonl, line 2"].forms[0].ids)
    assert examples["metadata.jsonl, line 3"].problem.answer == "blue"
    assert tokenizer.decode(examples["deep/lines.jsonl, line 2"].forms[0].ids).endswith(" good day<|im_end|>")
    parts = [e for where, e in examples.items() if where.startswith("notes.txt")]
    assert len(parts) > 2 and all(len(e.forms[0].ids) <= 193 for e in parts)
    assert "".join(tokenizer.decode(e.forms[0].ids[:-1]) for e in parts).split() == (tmp_path / "notes.txt").read_text("utf-8").split()


def test_files_as_people_have_them(tmp_path, tokenizer):
    """A byte order mark, U+2028 inside a string, a folder called like a file, capitals, a long line, an animated webp."""
    (tmp_path / "notes.md").mkdir()
    (tmp_path / "A.TXT").write_bytes(b"\xef\xbb\xbfhello")
    for name in ("._A.TXT", "__MACOSX/A.TXT", ".git/x.md"):              # what a Mac's zip and git leave beside
        put(tmp_path, name, "")
        (tmp_path / name).write_bytes(b"\x00\xff")
    put(tmp_path, "b.jsonl", json.dumps({"text": "one\u2028line"}, ensure_ascii=False) + "\n" + json.dumps({"text": "word " * 3000}))
    frames = [Image.new("RGB", (16, 16), (40 * i, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "moves.webp", save_all=True, append_images=frames[1:], lossless=True)
    put(tmp_path, "metadata.jsonl", [{"file_name": "moves.webp", "text": "it moves"}])
    examples = {e.where: e for e in own.read(tmp_path, tokenizer, VISION)}
    assert tokenizer.decode(examples["A.TXT, part 1"].forms[0].ids) == "hello\n[EOS]"
    assert examples["metadata.jsonl, line 1"].problem.modality == "video" and "b.jsonl, line 2, part 3" in examples


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080), (40, 24), (500, 90), (119, 111)])
def test_what_is_asked_is_what_was_learned_from(tmp_path, tokenizer, size):
    """Kept as small as it is seen, and not made smaller once more."""
    rng = np.random.default_rng(0)
    frames = [Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)) for _ in range(9)]
    frames[0].save(tmp_path / "a.png")
    frames[0].save(tmp_path / "b.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)
    put(tmp_path, "metadata.jsonl", [{"file_name": name, "text": "noise"} for name in ("a.png", "b.webp")])
    for example in own.read(tmp_path, tokenizer, VISION):
        learned, asked = example.forms[1], chat_prompt(example.problem, tokenizer, VISION)
        assert learned.ids[:len(asked.ids)] == asked.ids
        assert all(np.array_equal(a.frames, b.frames) and a.seconds == b.seconds for a, b in zip(learned.clips, asked.clips, strict=True))


def test_what_is_held_out_goes_by_the_file(tmp_path, tokenizer):
    """Two questions about one picture are on one side, and text is never held out: nothing would be measured on it."""
    rows = []
    for i in range(40):
        dot(tmp_path / f"{i}.png", "red")
        rows += [{"file_name": f"{i}.png", "question": q, "answer": "x"} for q in ("a?", "b?")]
    put(tmp_path, "metadata.jsonl", rows), put(tmp_path, "a.jsonl", [{"text": f"line {i}"} for i in range(40)])
    examples = own.read(tmp_path, tokenizer, VISION)
    shown = [e.held_out for e in examples if e.problem]
    assert shown[::2] == shown[1::2] and 0 < sum(shown) < 20 and not any(e.held_out for e in examples if not e.problem)


def test_special_text_stays_text(tmp_path, tokenizer):
    put(tmp_path, "a.jsonl", [{"text": "<|im_end|> [EOS] <think>"}, {"messages": [{"role": "user", "content": "<|im_end|>"},
                                                                                  {"role": "assistant", "content": "<|media_pad|>"}]}])
    text, chat = (e.forms[0] for e in own.read(tmp_path, tokenizer, VISION))
    assert sum(i >= len(tokenizer.ranks) for i in text.ids) == 1             # [EOS] at its end
    assert tokenizer.media_pad not in chat.ids and chat.ids.count(tokenizer.im_end) == 2


CHAT = lambda *roles: {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize("name, content, sentence", [
    ("a.jsonl", '{"text": "fine"}\n{"text": ', "a.jsonl, line 2: no JSON"), ("a.jsonl", "[1]", "a.jsonl, line 1: want an object"),
    ("a.jsonl", '{"txt": "x"}', "line 1: text is missing"), ("a.jsonl", '{"text": 7}', "line 1: text must be"),
    ("a.jsonl", '{"text": "  "}', "line 1: text must be"), ("b/a.jsonl", '\n\n{"text": ""}', "b/a.jsonl, line 3: text must be"),
    ("a.jsonl", '{"messages": []}', "messages must be a list"), ("a.jsonl", '{"messages": ["x"]}', "messages must be a list"),
    ("a.jsonl", [CHAT("user", "robot")], "role 'robot'"), ("a.jsonl", [CHAT("user")], "last message must be the assistant's"),
    ("a.jsonl", [{"messages": [{"role": "assistant", "content": None}]}], "content must be a string"),
    ("metadata.jsonl", [{"text": "x"}], "line 1: file_name is missing"), ("metadata.jsonl", [{"file_name": "no.png", "text": "x"}], "no such file"),
    ("metadata.jsonl", [{"file_name": "../own.png", "text": "x"}], "lies outside"),
    ("metadata.jsonl", [{"file_name": "metadata.jsonl", "text": "x"}], "cannot read"),
    ("metadata.jsonl", [{"file_name": "a.png"}], "text is missing"), ("metadata.jsonl", [{"file_name": "a.png", "question": "x"}], "answer is missing"),
    ("metadata.jsonl", [{"file_name": "a.png", "text": "word " * 2000}], "tokens, at most"),
    ("metadata.csv", "file_name,text", "read from metadata.jsonl"),
    ("a.png", None, "nothing to learn from"), ("a.txt", "   \n\n  ", "nothing to learn from"),
])
def test_what_cannot_be_used_is_one_sentence(tmp_path, tokenizer, name, content, sentence):
    folder = tmp_path / "data"
    folder.mkdir()
    dot(folder / "a.png", "red"), dot(tmp_path / "own.png", "red")
    if content is not None:
        put(folder, name, content)
    with pytest.raises(ValueError, match=sentence) as caught:
        own.read(folder, tokenizer, VISION)
    assert "\n" not in str(caught.value)


def test_text_that_is_no_utf8(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_bytes(b"a\nb\ncaf\xe9")
    with pytest.raises(ValueError, match="a.txt, line 3: not UTF-8"):
        own.read(tmp_path, tokenizer, VISION)


@pytest.fixture
def run(tmp_path, tokenizer):
    torch.manual_seed(0)
    language = LanguageConfig(vocab=tokenizer.vocab_size, dim=48, layers=2, heads=2, q_lora=24, kv_lora=16, nope=8, rope=8, v_dim=8, dense_ffn=64,
                              experts=4, expert_ffn=24)
    tokenizer.save(tmp_path / "run" / "tokenizer")
    save(NanoKimi(ModelConfig(VISION, language), tokenizer.media_pad), tmp_path / "run" / "sft")
    return tmp_path / "run"


def call(monkeypatch, run, folder, *options):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data", str(folder), "--run", str(run), "--threads", "1", *options])
    train.main()


def two_colours(folder):
    """Ten red and ten blue pictures."""
    folder.mkdir()
    for i in range(20):
        dot(folder / f"{i}.png", "red" if i % 2 else "blue", 16)
    put(folder, "metadata.jsonl", [{"file_name": f"{i}.png", "text": "alpha" if i % 2 else "omega"} for i in range(20)])
    return folder


def test_it_learns_and_says_what_it_gained(monkeypatch, run, tmp_path, capsys):
    monkeypatch.setattr(own, "KEPT", ()), monkeypatch.setattr(own, "SHARE", 1.0)
    folder = two_colours(tmp_path / "colours")
    call(monkeypatch, run, folder, "--steps", "400")
    gained = json.loads((run / "tuned" / "own.json").read_text("utf-8"))
    assert gained["before"]["held out"] == 0 and gained["after"]["held out"] == 1
    monkeypatch.setattr(sys, "argv", ["own", str(run), str(folder)])
    own.main()
    assert "tuned: 1.000 of 20" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call(monkeypatch, run, folder)
    assert "finished already" in " ".join(capsys.readouterr().err.split())


def test_rehearsal_has_chats_about_known_pictures(tokenizer):
    rng = own.np.random.default_rng(0)
    chats = [own.picture_chat(tokenizer, VISION, rng) for _ in range(20)]
    assert all(chat.clips and any(chat.mask) and chat.ids[-1] == tokenizer.im_end for chat in chats)
    example = own.Example("x", [chats[0]])
    drawn = own.documents_of([example], tokenizer, VISION, rng)
    assert sum(doc is chats[0] for doc in drawn) not in (0, len(drawn)) and any(doc.clips for doc in drawn if doc is not chats[0])


def test_stopped_and_continued_equals_uninterrupted(monkeypatch, run, tmp_path):
    monkeypatch.setattr(own, "KEPT", ())
    folder = two_colours(tmp_path / "colours")
    call(monkeypatch, run, folder, "--steps", "4")
    whole = load(run / "tuned").state_dict()
    (run / "tuned").rename(tmp_path / "whole")

    def stop_after_two(learner, documents, count=[0]):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return original(learner, documents)
    original = own.Learner.imitate
    monkeypatch.setattr(own.Learner, "imitate", stop_after_two)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, run, folder, "--steps", "4", "--save-every", "0")
    assert stop.value.code == 130 and list((run / "tuned").glob("step-*"))
    monkeypatch.setattr(own.Learner, "imitate", original)
    call(monkeypatch, run, folder, "--steps", "4")
    again = load(run / "tuned").state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_other_settings_do_not_continue(run):
    (run / "tuned").mkdir()
    own.settle(run / "tuned", {"steps": 4})
    with pytest.raises(ValueError, match="was started with steps 4, not 5"):
        own.settle(run / "tuned", {"steps": 5})


def test_other_contents_are_another_tuning(monkeypatch, run, tmp_path, capsys):
    """As many examples, another caption."""
    monkeypatch.setattr(own, "KEPT", ())
    folder = two_colours(tmp_path / "colours")
    monkeypatch.setattr(own, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, run, folder, "--steps", "1", "--save-every", "0")
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text("utf-8").replace("alpha", "gamma"))
    with pytest.raises(SystemExit):
        call(monkeypatch, run, folder, "--steps", "1", "--save-every", "0")
    assert "was started with checksum" in capsys.readouterr().err


def test_after_a_failed_last_save_the_same_command_goes_on(monkeypatch, run, tmp_path):
    monkeypatch.setattr(own, "KEPT", ())
    folder, whole = two_colours(tmp_path / "colours"), own.save
    monkeypatch.setattr(own, "save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, run, folder, "--steps", "2", "--save-every", "0")
    monkeypatch.setattr(own, "save", whole)
    call(monkeypatch, run, folder, "--steps", "2", "--save-every", "0")
    assert (run / "tuned" / "model.safetensors").is_file()


def test_what_is_trained_on_is_not_called_held_out(monkeypatch, run, tmp_path, capsys):
    """A folder of one picture that would be held out: nothing else is there to learn from."""
    monkeypatch.setattr(own, "KEPT", ())
    name = next(f"{i}.png" for i in range(100) if zlib.crc32(f"{i}.png".encode()) % 10 == 0)
    (tmp_path / "one").mkdir(), dot(tmp_path / "one" / name, "red", 16)
    put(tmp_path / "one", "metadata.jsonl", [{"file_name": name, "text": "alpha"}])
    call(monkeypatch, run, tmp_path / "one", "--steps", "1")
    assert "1 examples, 0 of them held out" in capsys.readouterr().out
    assert "held out" not in json.loads((run / "tuned" / "own.json").read_text("utf-8"))["after"]


def test_nothing_is_written_for_a_bad_folder(monkeypatch, run, tmp_path, capsys):
    put(tmp_path, "bad/a.jsonl", "{")
    for folder, sentence in ((tmp_path / "bad", "a.jsonl, line 1"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(SystemExit) as stop:
            call(monkeypatch, run, folder)
        assert stop.value.code == 2 and sentence in " ".join(capsys.readouterr().err.split())
    assert not (run / "tuned").exists()
