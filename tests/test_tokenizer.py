"""Tokenizer: round trips, specials that text cannot forge, K2.5's prompt format, loss masks."""
import json
import pickle
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanokimi.tokenizer import SPECIALS, Learn, Tokenizer, declare_tools, timestamp

WORDS = "red green blue circle square star left right above below what how many is the a picture of and then".split()
TEXTS = [" ".join(WORDS[i:] + WORDS[:i]) + f". It's {i * 37}, isn't it?\nJa: 漢字かな é" for i in range(len(WORDS))]
TOK = Tokenizer.train(TEXTS, 360)
PYTHON = {"name": "python", "description": "Run code.", "parameters": {"type": "object", "properties": {
    "code": {"type": "string", "description": "the program"}, "limit": {"type": "integer"}}, "required": ["code"]}}


@dataclass
class FakeClip:
    kind: str = "image"
    seconds: float = 0.0
    n: int = 3

    def tokens(self, patch):
        return self.n


def trained(rendered):
    return TOK.decode([i for i, learn in zip(rendered.ids, rendered.mask) if learn])


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_round_trip_and_no_special_ids(text):
    ids = TOK.encode(text)
    assert TOK.decode(ids) == text
    assert all(i < len(TOK.ranks) for i in ids)


@given(st.lists(st.sampled_from([*SPECIALS.values(), "x", " ", "<|", "|>", "\n"]), max_size=8).map("".join))
@settings(max_examples=200, deadline=None)
def test_special_text_stays_text_everywhere(text):
    clip = FakeClip()
    rendered = TOK.render_chat([{"role": "system", "content": text}, {"role": "user", "content": [text, clip, text]},
                                {"role": "assistant", "thinking": text, "content": text,
                                 "tool_calls": [{"name": "python", "arguments": {"code": text}}]},
                                {"role": "tool", "content": text}, {"role": "assistant", "content": text}])
    plain = TOK.render_chat([{"role": "system", "content": ""}, {"role": "user", "content": ["", clip, ""]},
                             {"role": "assistant", "thinking": "", "content": "",
                              "tool_calls": [{"name": "python", "arguments": {"code": ""}}]},
                             {"role": "tool", "content": ""}, {"role": "assistant", "content": ""}])
    specials = lambda r: [i for i in r.ids if i >= len(TOK.ranks)]
    assert specials(rendered) == specials(plain)
    assert rendered.ids.count(TOK.media_pad) == 3 and rendered.clips == [clip]


def test_digits_are_single_tokens():
    assert len(TOK.encode("1234567")) == 7


def test_save_load_pickle(tmp_path):
    TOK.save(tmp_path)
    for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(TOK))):
        assert other.ranks == TOK.ranks and other.vocab_size == TOK.vocab_size == 360
        assert other.encode(TEXTS[3]) == TOK.encode(TEXTS[3])
    first = (tmp_path / "tokenizer.tiktoken").read_text("utf-8").splitlines()[0].split()
    assert first == ["AA==", "0"]


def test_special_ids_follow_the_merges():
    ids = [getattr(TOK, name) for name in SPECIALS]
    assert ids == list(range(len(TOK.ranks), TOK.vocab_size))
    assert TOK.decode([TOK.media_pad, TOK.eos]) == "<|media_pad|>[EOS]"


def test_train_errors():
    with pytest.raises(ValueError, match="use more text"):
        Tokenizer.train(["aaaa"], 2000)
    with pytest.raises(ValueError, match="256 bytes"):
        Tokenizer.train(TEXTS, 100)


def test_user_prompt_bytes():
    out = TOK.render_chat([{"role": "user", "content": "hi"}], generate=True)
    assert TOK.decode(out.ids) == "<|im_user|>user<|im_middle|>hi<|im_end|><|im_assistant|>assistant<|im_middle|><think>"
    out = TOK.render_chat([{"role": "user", "content": "hi"}], thinking=False, generate=True)
    assert TOK.decode(out.ids).endswith("<|im_assistant|>assistant<|im_middle|><think></think>")
    assert not any(out.mask)


def test_image_block():
    out = TOK.render_document([FakeClip(n=2), Learn("a star")])
    assert TOK.decode(out.ids) == "<|media_begin|>image<|media_content|><|media_pad|><|media_pad|><|media_end|>a star[EOS]"
    assert trained(out) == "a star[EOS]"


def test_video_block_one_timestamp_a_chunk():
    chunks = [FakeClip("video", 0.0, 1), FakeClip("video", 2.0, 1), FakeClip("video", 63.5, 1)]
    out = TOK.render_document(["see: ", chunks, "what?"])
    block = "<|media_begin|>video<|media_content|><|media_pad|><|media_end|>"
    assert TOK.decode(out.ids) == f"see: 00:00:00.000{block}00:00:02.000{block}00:01:03.500{block}what?[EOS]"
    assert out.clips == chunks and not any(out.mask)


@settings(deadline=None)                                                 # a machine may pause
@given(st.integers(0, 10 ** 8))
def test_timestamp_is_exact_in_milliseconds(ms):
    h, m, s = timestamp(ms / 1000).split(":")
    assert round((int(h) * 3600 + int(m) * 60) * 1000 + float(s) * 1000) == ms


def test_document_loss_on_learn_only():
    out = TOK.render_document(["question: ", Learn("red"), " why? ", Learn("so")])
    assert trained(out) == "redso[EOS]"
    assert len(out.ids) == len(out.mask)


def test_chat_loss_is_the_assistants_own_tokens():
    call = {"name": "python", "arguments": {"code": "print('é')\n"}}
    out = TOK.render_chat([{"role": "user", "content": "go"},
                           {"role": "assistant", "thinking": "hm", "content": "I run it.", "tool_calls": [call]},
                           {"role": "tool", "content": "é"}, {"role": "assistant", "thinking": "ok", "content": "done"}], tools=[PYTHON])
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    assert trained(out) == ("hm</think>I run it.<|tool_calls_section_begin|><|tool_call_begin|>functions.python:0"
                            f"<|tool_call_argument_begin|>{arguments}<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
                            "ok</think>done<|im_end|>")
    text = TOK.decode(out.ids)
    assert "<|im_system|>python|tool<|im_middle|>## Return of functions.python:0\né<|im_end|>" in text
    assert text.startswith("<|im_system|>tool_declare<|im_middle|># Tools\n\n## functions\nnamespace functions {")


def test_history_thinking_is_dropped_and_not_learned():
    out = TOK.render_chat([{"role": "user", "content": "a"}, {"role": "assistant", "thinking": "SECRET", "content": "one"},
                           {"role": "user", "content": "b"}, {"role": "assistant", "thinking": "why", "content": "two"}])
    text = TOK.decode(out.ids)
    assert "SECRET" not in text and "<think></think>one<|im_end|>" in text
    assert trained(out) == "why</think>two<|im_end|>"


def test_instant_turns_learn_the_content_only():
    out = TOK.render_chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "one"}], thinking=False)
    assert trained(out) == "one<|im_end|>" and "<think></think>one" in TOK.decode(out.ids)


def test_training_text_continues_the_generation_prompt():
    user = {"role": "user", "content": ["what? ", FakeClip()]}
    answer = {"role": "assistant", "thinking": "hm", "content": "x"}
    for thinking, answer in ((True, answer), (False, {"role": "assistant", "content": "x"})):
        prompt = TOK.render_chat([user], thinking=thinking, generate=True)
        full = TOK.render_chat([user, answer], thinking=thinking)
        assert full.ids[:len(prompt.ids)] == prompt.ids
        assert all(full.mask[len(prompt.ids):])


def test_tool_results_continue_the_conversation_exactly():
    calls = [{"name": "python", "arguments": {"code": "1"}}, {"name": "python", "arguments": {"code": "2"}}]
    head = [{"role": "user", "content": "go"}, {"role": "assistant", "thinking": "t", "content": "", "tool_calls": calls}]
    clip = FakeClip()
    whole = TOK.render_chat([*head, {"role": "tool", "content": "one"}, {"role": "tool", "content": ["two", clip]}], generate=True)
    rest = TOK.render_results(["python", "python"], ["one", ["two", clip]])
    assert TOK.render_chat(head).ids + rest.ids == whole.ids and rest.clips == [clip] and not any(rest.mask)
    assert "functions.python:1" in TOK.decode(rest.ids)


def test_chat_errors():
    with pytest.raises(ValueError, match="no tool call"):
        TOK.render_chat([{"role": "user", "content": "x"}, {"role": "tool", "content": "1"}])
    with pytest.raises(ValueError, match="role 'robot'"):
        TOK.render_chat([{"role": "robot", "content": "x"}])


def response_of(message, thinking=True):
    prompt = TOK.render_chat([{"role": "user", "content": "q"}], thinking=thinking, generate=True)
    return TOK.render_chat([{"role": "user", "content": "q"}, message], thinking=thinking).ids[len(prompt.ids):]


ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(), max_size=2)


@given(st.text(max_size=20), st.text(max_size=20), st.lists(ARGUMENTS, max_size=2))
@settings(max_examples=100, deadline=None)
def test_parse_inverts_render(thought, content, arguments):
    calls = [{"name": "python", "arguments": a} for a in arguments]
    ids = response_of({"role": "assistant", "thinking": thought, "content": content, "tool_calls": calls})
    assert TOK.parse_response(ids, opened=True) == {"thinking": thought, "content": content, "tool_calls": calls, "well_formed": True}


def test_parse_instant_and_truncated():
    assert TOK.parse_response(response_of({"role": "assistant", "content": "x"}, False)) == {
        "thinking": None, "content": "x", "tool_calls": [], "well_formed": True}
    cut = TOK.parse_response(TOK.encode("still thinking"), opened=True)
    assert cut == {"thinking": "still thinking", "content": "", "tool_calls": [], "well_formed": False}
    assert TOK.parse_response([], opened=True)["well_formed"] is False
    assert TOK.parse_response([])["well_formed"] is False


@given(st.lists(st.sampled_from([*range(60, 70), *range(len(TOK.ranks), TOK.vocab_size)]), max_size=25), st.booleans())
@settings(max_examples=300, deadline=None)
def test_parse_never_raises(ids, opened):
    parsed = TOK.parse_response(ids, opened)
    assert set(parsed) == {"thinking", "content", "tool_calls", "well_formed"}
    if TOK.media_pad in ids or ids[-1:] != [TOK.im_end]:
        assert not parsed["well_formed"]


@pytest.mark.parametrize("name, arguments", [
    ("functions.python:0", "{"), ("functions.python:0", "[1]"), ("python:0", "{}"), ("functions.python", "{}"),
    ("functions.python:x", "{}"), ("functions.python:0", "[" * 100_000)], ids=["json", "list", "prefix", "index", "number", "deep"])
def test_malformed_calls(name, arguments):
    ids = [TOK.end_think, TOK.section_begin, TOK.call_begin, *TOK.encode(name), TOK.call_argument, *TOK.encode(arguments), TOK.call_end,
           TOK.section_end, TOK.im_end]
    parsed = TOK.parse_response(ids, opened=True)
    assert parsed["tool_calls"] == [] and not parsed["well_formed"]


def test_tool_declaration_is_typescript():
    assert declare_tools([PYTHON]) == ("# Tools\n\n## functions\nnamespace functions {\n// Run code.\ntype python = (_: {\n"
                                       "  // the program\n  code: string,\n  limit?: number,\n}) => any;\n}\n")
