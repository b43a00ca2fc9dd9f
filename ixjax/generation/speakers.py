"""A language model as one side of many dialogues: from text to tokens and back.

A new turn costs only its own tokens; the history is not read again. A context ends right after its
speaker's own words, and the markup that ends the turn is read together with the reply. The closing
outcome line can therefore be scored after any turn of the user.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

from ixjax.dialogue.chat import View
from ixjax.dialogue.token_bytes import token_bytes
from ixjax.dialogue.types import Dialogue, OutcomeReading, Role, UserCondition, Utterance
from ixjax.generation.blocks import BlockPool
from ixjax.generation.config import EngineConfig
from ixjax.generation.driver import Task, wait
from ixjax.generation.effects import Decode, Read, Score
from ixjax.generation.engine import Engine
from ixjax.generation.outcomes import (
    DECIMALS,
    OUTCOME_TOKENS,
    Closing,
    ReadOut,
    line_identity,
    line_room,
    reading_of,
)
from ixjax.generation.requests import Request
from ixjax.generation.sampling import SamplingConfig
from ixjax.generation.stats import EngineStats
from ixjax.generation.stops import compile_stops, cut
from ixjax.generation.turns import SILENCE
from ixjax.models import Transformer
from ixjax.padding import common_beginning


class ModelSpeaker:
    """A language model as one side of dialogues; with `view.role == "user"` also a `User`.

    Args:
        model: the decoder, or its engine from `speaker_engine`. Speakers with one base model share
            an engine and have an adapter each.
        view: how this side sees a dialogue (scenario, role, chat template).
        sampling: how turns are sampled.
        seed: of the run.
        readout: how outcomes are read: `expected` scores every possible closing line after the
            forced marker (no sampling noise); `sampled` reads the generated line.
        adapter: the adapter of this side.

    Attributes:
        dropped_turns: oldest turns that were dropped from contexts for lack of room.
    """

    def __init__(
        self,
        model: Transformer | Engine,
        view: View,
        sampling: SamplingConfig,
        *,
        seed: int,
        readout: ReadOut = "expected",
        adapter: int = 0,
    ):
        self.view, self.sampling = view, sampling
        self.seed, self.readout, self.adapter = seed, readout, adapter
        self.engine = model if isinstance(model, Engine) else speaker_engine(model, view, sampling)
        self.dropped_turns = 0
        self._bytes = text_bytes(view) if sampling.stop else []
        self._lines: dict[tuple[str, ...], list[list[int]]] = {}  # tokens of closing lines
        # Longest context that still has room for one more turn and an outcome line.
        longest = self.engine.model_config.max_length
        self.limit = longest - sampling.max_new_tokens - OUTCOME_TOKENS
        if self.limit < 1:
            raise ValueError(
                f"max_new_tokens is {sampling.max_new_tokens}; expected "
                f"{longest - OUTCOME_TOKENS - 1} or less: a context has {longest} tokens, "
                f"{OUTCOME_TOKENS} of them for the outcome"
            )

    def begin(
        self, dialogue: Dialogue, *, near: ModelParticipant | None = None
    ) -> ModelParticipant:
        """See `Speaker.begin`."""
        return ModelParticipant(self, dialogue, near)

    def longest_turn(self, identity: Sequence[int]) -> int:
        """Return the most tokens of a turn, at which it is cut. Override it to vary the limit."""
        return self.sampling.max_new_tokens

    def render(self, dialogue: Dialogue) -> tuple[int, ...]:
        """Return the tokens of a context; drop and count the oldest turns if they do not fit."""
        context = self.view.context(dialogue, max_tokens=self.limit)
        self.dropped_turns += context.dropped_turns
        return tuple(context.tokens)

    def parse(self, tokens: Sequence[int]) -> tuple[Utterance, str | None, int | None]:
        """Return an utterance, its closing line, and the number of sampled tokens that spell it.

        The number is None if no prefix of the tokens spells the utterance.
        """
        stop = cut(tokens, self.sampling.stop, self._bytes) if self.sampling.stop else None
        turn = self.view.parse(tokens if stop is None else tokens[: stop[0]])
        text, kept = turn.text, turn.kept
        if stop is not None and not turn.ended:
            text = stop[1].decode(errors="ignore").strip()
            kept = kept if text == turn.text else None
        if not text and not turn.ended:
            text, kept = SILENCE, None
        ends = stop is not None or (tokens and tokens[-1] in self.view.template.end_ids)
        said = Utterance(text, ended=turn.ended, num_tokens=len(tokens), truncated=not ends)
        return said, turn.line, kept

    def closing(self, condition: UserCondition) -> Closing:
        """Return the closing lines of a condition."""
        return Closing.of(self.view, condition, self._lines)

    def scored_shapes(self, conditions: Sequence[UserCondition]) -> list[tuple[int, int, int]]:
        """Return (tokens of the prefix, lines, tokens of the longest) that will be scored."""
        if self.view.role != "user" or self.readout != "expected" or not conditions:
            return []
        closings = map(self.closing, conditions)
        found = {(len(c.prefix), len(c.tails), max(map(len, c.tails))) for c in closings}
        return sorted({*found, tuple(max(column) for column in zip(*found, strict=True))})


class ModelParticipant:
    """A language model's side of one dialogue; see `Participant`.

    Args:
        speaker: the model.
        dialogue: the turns so far.
        near: see `Speaker.begin`.

    Attributes:
        context: the engine's handle.
        line: the closing line as generated; None without one.
    """

    def __init__(
        self, speaker: ModelSpeaker, dialogue: Dialogue, near: ModelParticipant | None = None
    ):
        self.speaker, self.dialogue = speaker, dialogue
        self.line: str | None = None
        # Before the first turn, the identity of a closing line is a hash of the dialogue.
        self._identity: tuple[int, ...] = (zlib.crc32(json.dumps(dialogue.to_json()).encode()),)
        engine = speaker.engine
        if near is None:
            self.context = engine.new(speaker.render(dialogue), adapter=speaker.adapter)
        else:
            self.context = engine.fork(near.context)
            self._render()

    def speak(self, identity: Sequence[int]) -> Task[Utterance]:
        """See `Participant.speak`."""
        request = self.request(identity)
        yield from wait(Decode(self.speaker.engine, request))
        return self.settle(request)

    def request(self, identity: Sequence[int]) -> Request:
        """Return this side's next turn for `Engine.decode`."""
        speaker = self.speaker
        return Request(
            self.context,
            speaker.sampling,
            speaker.seed,
            tuple(map(int, identity)),
            speaker.longest_turn(identity),
            speaker.view.template.end_ids,
            speaker.sampling.stop,
            turns=len(self.dialogue.turns),
        )

    def settle(self, request: Request) -> Utterance:
        """Append a decoded turn to the dialogue; return its utterance."""
        speaker, tokens = self.speaker, request.tokens
        said, self.line, kept = speaker.parse(tokens)
        mean = round(float(sum(request.logprobs)) / max(len(tokens), 1), DECIMALS)
        self._identity = request.identity
        start = len(self.context) - len(tokens) + request.ended
        # Cut a closing line off: the outcome is read without it.
        speaker.engine.shorten(self.context, start + (kept or 0))
        if said.text:
            self.dialogue = self.dialogue.said(speaker.view.role, said.text)
            if kept is None:  # no sampled tokens spell it: render the text that is heard
                self._render()
        return dataclasses.replace(said, mean_logprob=mean)

    def hear(self, text: str) -> None:
        """See `Participant.hear`. A full context is read again without its oldest turns."""
        speaker = self.speaker
        new = speaker.view.continuation(self.dialogue, text)
        self.dialogue = self.dialogue.said(_other(speaker.view.role), text)
        if new is None or len(self.context) + len(new) > speaker.limit:
            self._render()
        else:
            speaker.engine.extend({self.context: new})

    def _render(self) -> None:
        """Make the context hold the dialogue; tokens after the first difference are read again."""
        engine, tokens = self.speaker.engine, self.speaker.render(self.dialogue)
        same = common_beginning(self.context.tokens, tokens)
        engine.shorten(self.context, same)
        engine.extend({self.context: tokens[same:]})

    def fork(self, count: int) -> Task[list[ModelParticipant]]:
        """See `Participant.fork`. Unread tokens are read first, so that the copies share them."""
        if self.context.unread:
            yield from wait(Read(self.speaker.engine, self.context))
        return [self._copy() for _ in range(count)]

    def _copy(self) -> ModelParticipant:
        copy = object.__new__(ModelParticipant)
        copy.speaker, copy.dialogue = self.speaker, self.dialogue
        copy.line, copy._identity = self.line, self._identity
        copy.context = self.speaker.engine.fork(self.context)
        return copy

    def close(self) -> None:
        """See `Participant.close`."""
        self.speaker.engine.free(self.context)

    def outcome(self) -> Task[OutcomeReading]:
        """Read the outcome by the configured read-out (docs/algorithm.md, "Engagement").

        Raises:
            ValueError: this speaker is the policy, which has no outcome.
        """
        speaker, condition = self.speaker, self.dialogue.condition
        if speaker.view.role != "user":
            raise ValueError("only the user's side has an outcome; this speaker is the policy")
        if speaker.readout == "sampled":
            line = yield from self._drawn_line()
            return reading_of(speaker.view.scenario.read_outcome(condition, line))
        closing = speaker.closing(condition)
        score = Score(speaker.engine, self.context, closing.prefix, closing.tails)
        scores = yield from wait(score)
        return closing.expectation(scores)

    def _drawn_line(self) -> Task[str]:
        """Return the generated closing line; sample one if the dialogue was cut before it."""
        speaker = self.speaker
        if self.line is not None:
            return self.line
        engine, template = speaker.engine, speaker.view.template
        context = engine.fork(self.context)
        engine.extend({context: template.marker_ids})
        request = Request(
            context,
            speaker.sampling,
            speaker.seed,
            line_identity(self._identity),
            line_room(speaker.view),
            template.end_ids,
            turns=len(self.dialogue.turns),
        )
        yield from wait(Decode(engine, request))
        engine.free(context)
        return template.decode(request.tokens)


def speaker_engine(
    model: Transformer,
    view: View,
    sampling: SamplingConfig,
    config: EngineConfig | None = None,
    *,
    stats: EngineStats | None = None,
    pool: BlockPool | None = None,
) -> Engine:
    """Return an engine for speakers with this view's tokenizer and these sampling settings."""
    size = model.config.vocab_size
    stops = {}
    if sampling.stop:
        stops[sampling.stop] = compile_stops(sampling.stop, text_bytes(view), vocab_size=size)
    return Engine(model, config, stops=stops, stats=stats, pool=pool)


def reserve(speakers: Sequence[object], tokens: Callable[[ModelSpeaker], int]) -> None:
    """Allocate room in the KV cache before speakers play; it grows if that is not enough.

    Args:
        speakers: all in play; those that are not models are left out.
        tokens: number of tokens to allocate for a speaker.
    """
    wanted: Counter[BlockPool] = Counter()
    for speaker in speakers:
        if isinstance(speaker, ModelSpeaker):
            wanted[speaker.engine.pool] += tokens(speaker)
    for pool, count in wanted.items():
        pool.reserve(count)


def text_bytes(view: View) -> list[bytes]:
    """Return the bytes of each token in a turn's text, which has no markup."""
    template = view.template
    texts = token_bytes(template.tokenizer)
    return [b"" if i in template.special_ids else text for i, text in enumerate(texts)]


def _other(role: Role) -> Role:
    return "user" if role == "policy" else "policy"
