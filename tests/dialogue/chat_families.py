"""Small tokenizers that carry the chat templates of well-known model families.

The templates behave as the families' own do (roles refused, texts trimmed, default system texts,
markup between turns); the vocabularies are trained here on a few sentences.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ixjax.dialogue.chat_template import ChatTemplate
from ixjax.dialogue.tokenizer import train_tokenizer
from ixjax.dialogue.types import Outcome, UserCondition

SENTENCES = [
    "I feel tired since my exam, and I do not sleep well.",
    "That sounds hard. What would help you to rest tonight?",
    "The user is sad. You support the user. final intensity: 3",
    "Would you give $2 to the children? Maybe, thank you so much!",
]

# Words, numbers of up to three digits, punctuation, line breaks (the pattern of Llama 3, Qwen 2).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# Without a system message it writes its own.
QWEN2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_GEMMA_TURNS = (
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
)
_GEMMA_CUE = "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}" + _GEMMA_TURNS + "{{ '<start_of_turn>' + role + '\n' + "
    "message['content'] | trim + '<end_of_turn>\n' }}" + _GEMMA_CUE
)
# Puts the system text into the first user turn.
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set loop_messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set loop_messages = messages %}{% endif %}"
    "{% for message in loop_messages %}" + _GEMMA_TURNS + "{{ '<start_of_turn>' + role + '\n' + "
    "(first if loop.first else '') + message['content'] | trim + '<end_of_turn>\n' }}" + _GEMMA_CUE
)
# Not additive: cues with an empty thought, and drops thoughts from earlier turns.
THINKING = QWEN2.replace(
    "{{ '<|im_start|>assistant\n' }}",
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' }}",
)


@dataclasses.dataclass(frozen=True)
class Family:
    """The tokens and the template of a family."""

    template: str
    begin: str | None
    end: str
    special: tuple[str, ...]
    pad: str | None = None
    ordinary: tuple[str, ...] = ()  # added tokens that the folder does not call special


_IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
_GEMMA = ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>")
FAMILIES = {
    "llama3": Family(
        LLAMA3,
        "<|begin_of_text|>",
        "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
    "qwen2": Family(QWEN2, None, "<|im_end|>", _IM, pad="<|endoftext|>"),
    "gemma2": Family(GEMMA2, "<bos>", "<eos>", _GEMMA, pad="<pad>"),
    "gemma3": Family(GEMMA3, "<bos>", "<eos>", _GEMMA, pad="<pad>"),
    "thinking": Family(
        THINKING,
        None,
        "<|im_end|>",
        ("<|im_end|>",),
        pad="<|im_end|>",
        ordinary=("<|im_start|>", "<think>", "</think>"),
    ),
}
ADDITIVE = ("own", "llama3", "qwen2", "gemma2", "gemma3")
EVERY = (*ADDITIVE, "thinking")
TYPED_MARKUP = (
    "<|end|>", "<|outcome|>", "<|begin|>", "<|user|>", "<|pad|>", "<|im_end|>", "<|im_start|>",
    "<|eot_id|>", "<|begin_of_text|>", "<end_of_turn>", "<bos>", "<eos>", "<s>", "</s>", "<think>",
)  # fmt: skip


@functools.cache
def build(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a family; `own` is ours."""
    if name == "own":
        return train_tokenizer(SENTENCES * 3, vocab_size=420)
    return build_family(FAMILIES[name])


def build_family(family: Family) -> PreTrainedTokenizerFast:
    """Train a small byte-level tokenizer with the family's tokens and template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(family.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [*SENTENCES, "user\n", "assistant\n\n", "model\n\n", "system\n\n"]
    tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.add_tokens([AddedToken(name, special=False) for name in family.ordinary])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=family.begin, eos_token=family.end,
        pad_token=family.pad, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = family.template
    return fast


@functools.cache
def template_of(name: str) -> ChatTemplate:
    """Return the chat template of a family."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "thinking" else "error")
        return ChatTemplate.from_tokenizer(build(name))


def template_ids(tokenizer, messages, *, cue: bool) -> list[int]:
    """Return the ids that `transformers` gives for these messages."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=cue)
    return list(ids["input_ids"] if hasattr(ids, "keys") else ids)


@dataclasses.dataclass(frozen=True)
class ToyScenario:
    """A user with a mood of 1 to 5, closed by `final mood: N`."""

    policy_opens: bool = False
    name: str = "toy"
    policy_prompt: str = "You support the user."
    outcome_pattern: re.Pattern[str] = re.compile(r"final mood: ([1-5])")
    outcome_unit: str = "final mood"

    def simulator_prompt(self, condition: UserCondition) -> str:
        return f"You are a user. Situation: {condition.attributes['situation']}"

    def outcome_lines(self, condition: UserCondition) -> Sequence[tuple[str, Outcome]]:
        return [(f"final mood: {n}", Outcome(n, (5 - n) / 4)) for n in range(1, 6)]

    def outcome_line(self, condition: UserCondition, outcome: Outcome) -> str:
        return f"final mood: {outcome.value:.0f}"

    def read_outcome(self, condition: UserCondition, line: str) -> Outcome | None:
        found = self.outcome_pattern.search(line)
        return Outcome(int(found[1]), (5 - int(found[1])) / 4) if found else None

    def released(self, condition: UserCondition, outcome_value: float) -> bool:
        return outcome_value == 1
