"""Segments of a chat template are what transformers renders, and typed text is never markup."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from ixjax.dialogue.chat_template import ChatTemplate, TokenSegment
from ixjax.dialogue.rendering import SpeakerTurn
from ixjax.io import InputError
from tests.dialogue.chat_families import (
    ADDITIVE,
    EVERY,
    FAMILIES,
    TYPED_MARKUP,
    build,
    build_family,
    template_ids,
    template_of,
)

OTHER_FIRST = [
    SpeakerTurn(False, "I feel tired."),
    SpeakerTurn(True, "Why?"),
    SpeakerTurn(False, "My exam"),
]
OWN_FIRST = [SpeakerTurn(True, "Would you give $2?"), *OTHER_FIRST]
OPENS_OWN = {"own": True, "llama3": True, "qwen2": True, "gemma2": False, "gemma3": False}

typed = st.lists(
    st.one_of(
        st.sampled_from([*TYPED_MARKUP, "[out", "come", " ", "\n"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    ),
    max_size=6,
).map("".join)


def ids_of(template: ChatTemplate, turns: list[SpeakerTurn], *, cue: bool) -> list[int]:
    return list(TokenSegment.join(template.segments("Be kind.", turns, cue=cue)).tokens)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("turns", [[], OTHER_FIRST[:1], OTHER_FIRST, OWN_FIRST, OWN_FIRST[:2]])
def test_segments_equal_the_tokens_of_transformers(name, turns):
    template = template_of(name)
    messages = template.messages("Be kind.", turns, cue=True)
    assert ids_of(template, turns, cue=True) == template_ids(build(name), messages, cue=True)


@pytest.mark.parametrize("name", ADDITIVE)
def test_a_turn_costs_its_own_tokens_only(name):
    template = template_of(name)
    assert template.additive
    assert template.opens_own == OPENS_OWN[name]
    before = ids_of(template, OTHER_FIRST[:1], cue=True)
    reply = [*template.encode("Why?"), *template.own_suffix]
    after = [*template.other("My exam"), *template.own_prefix]
    assert ids_of(template, OTHER_FIRST, cue=True) == before + reply + after


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("own", "<|begin|><|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"),
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "qwen2",
            "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            "gemma2",
            "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "gemma3",
            "<bos><start_of_turn>user\nBe kind.\n\nHi<end_of_turn>\n<start_of_turn>model\n",
        ),
    ],
)
def test_known_families_look_as_they_are_known(name, expected):
    tokens = ids_of(template_of(name), [SpeakerTurn(False, " Hi\n")], cue=True)
    assert build(name).decode(tokens) == expected


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_template_that_must_open_with_a_user_gets_a_neutral_turn(name):
    tokens = ids_of(template_of(name), OWN_FIRST[:1], cue=False)
    assert build(name).decode(tokens) == (
        "<bos><start_of_turn>user\nBe kind.\n\n(The conversation begins.)<end_of_turn>\n"
        "<start_of_turn>model\nWould you give $2?<end_of_turn>\n"
    )


@pytest.mark.parametrize("name", EVERY)
def test_begin_token_stands_at_the_start_alone(name):
    tokens = ids_of(template_of(name), OWN_FIRST, cue=True)
    begin = build(name).bos_token_id
    assert begin not in tokens[1:]
    assert begin is None or tokens[0] == begin


@pytest.mark.parametrize("name", EVERY)
def test_only_own_words_and_end_tokens_are_scored(name):
    template = template_of(name)
    turns = [*OWN_FIRST, SpeakerTurn(True, "I see."), SpeakerTurn(False, "Yes")]
    whole = TokenSegment.join(template.segments("Be kind.", turns, cue=True))
    assert len(whole.tokens) == len(whole.scored)
    scored = [t for t, on in zip(whole.tokens, whole.scored, strict=True) if on]
    end = {"own": "<|end|>", "llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}.get(name)
    end = end or ("<|im_end|>" if name == "thinking" else "<end_of_turn>")
    assert build(name).decode(scored) == f"Would you give $2?{end}Why?{end}I see.{end}"


@given(text=typed, name=st.sampled_from(EVERY))
def test_typed_text_comes_back_and_is_never_markup(text, name):
    template = template_of(name)
    tokens = template.encode(text)
    assert template.special_ids.isdisjoint(tokens)
    if name != "own":  # the marker is plain words
        text = text.replace("[outcome]", "(outcome)")
    assert template.decode(tokens) == text.strip()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("markup", TYPED_MARKUP)
def test_typed_markup_changes_no_turn_boundary(name, markup):
    template = template_of(name)
    plain, evil = (
        ids_of(
            template,
            [SpeakerTurn(False, f"a {word} b"), SpeakerTurn(True, word), SpeakerTurn(False, word)],
            cue=True,
        )
        for word in ("word", markup)
    )
    vocabulary = build(name).get_vocab()
    special = {vocabulary[markup] for markup in TYPED_MARKUP if markup in vocabulary}
    special |= set(build(name).all_special_ids)
    assert [t for t in plain if t in special] == [t for t in evil if t in special]


def test_typed_marker_in_plain_words_is_rewritten():
    template = template_of("qwen2")  # it has no token for the marker
    assert template.tokenizer.decode(template.marker_ids) == "[outcome] "
    assert (
        template.decode(template.encode("so [outcome] x [outcome]")) == "so (outcome) x (outcome)"
    )
    assert template_of("own").marker_ids == (6,)


def test_lone_surrogate_is_named():
    with pytest.raises(InputError, match="not valid Unicode"):
        template_of("own").encode("a\ud800b")


def test_decode_stops_at_the_end_token_and_drops_strays():
    template = template_of("own")
    hello, there = template.encode(" hello "), template.encode("there")
    assert template.decode([*hello, 3, 6, *there, 5, *there]) == "hello there"
    assert template.decode([]) == ""


@pytest.mark.parametrize("name", EVERY)
def test_pad_is_never_an_end_token(name):
    template = template_of(name)
    assert template.end_ids[0] in template.own_suffix
    assert template.pad_id not in template.end_ids
    assert 0 <= template.pad_id < template.vocab_size


def test_end_of_text_stops_a_turn_as_well():
    # Gemma closes turns with <end_of_turn>, its <eos> is another token.
    tokenizer = build("gemma2")
    names = ["<end_of_turn>", "<eos>"]
    assert list(template_of("gemma2").end_ids) == tokenizer.convert_tokens_to_ids(names)


def test_template_that_does_not_add_up_warns_once_and_renders_whole():
    with pytest.warns(UserWarning, match="not additive") as caught:
        template = ChatTemplate.from_tokenizer(build("thinking"))
    assert len(caught) == 1
    assert not template.additive


def test_words_that_merge_with_markup_warn():
    # GPT-2's pattern splits two line breaks before a word, but not at the end of a text.
    tokenizer = build_family(FAMILIES["llama3"])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.warns(UserWarning, match="splits words and markup differently") as caught:
        template = ChatTemplate.from_tokenizer(tokenizer)
    assert len(caught) == 1
    assert template.additive  # rendering anew would give the same tokens as appending


def test_date_in_a_template_is_fixed():
    # Llama 3.2 and later: today's date, unless the caller gives one.
    date = "{% if not date_string %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    family = FAMILIES["llama3"]
    dated = dataclasses.replace(family, template=date + "{{ date_string }}" + family.template)
    template = ChatTemplate.from_tokenizer(build_family(dated))
    assert template.tokenizer.decode(template.system_prefix).startswith("26 Jul 2024<|begin_of")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no') }}", "refuses messages of the roles"),
        ("{% for m in messages[-2:] %}{{ m['content'] }}<|im_end|>{% endfor %}", "leaves out"),
        (
            "{% for m in messages %}{{ m['content'] }}\n{% endfor %}",
            r"assistant message with '\\n'",
        ),
    ],
)
def test_unusable_templates_are_refused(template, message):
    family = dataclasses.replace(FAMILIES["qwen2"], template=template)
    with pytest.raises(InputError, match=message):
        ChatTemplate.from_tokenizer(build_family(family))
