"""The sandbox world: a user who is a known probabilistic program over a small closed vocabulary.

A user has a hidden need, a distress from 1 to 5 and some patience. The user reads a response as an
act; the act that fits the need relieves, any other costs patience. The user's words state which
change happened, so the hidden state is a function of (condition, dialogue), and expected
engagement can be enumerated exactly. docs/sandbox.md has the tables and the reasons.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal, NamedTuple

from ixjax.dialogue.scenarios.esc import relief
from ixjax.dialogue.types import Dialogue, UserCondition
from ixjax.io import InputError

Need = Literal["listening", "advice", "courage", "distraction"]
Act = Literal["listening", "advice", "courage", "distraction", "question", "other"]
Change = Literal["relief", "unmoved", "upset", "reveal", "tired", "lost"]

NEEDS: tuple[Need, ...] = ("listening", "advice", "courage", "distraction")
SCALE = 5  # distress runs from 1 to 5
MOST_PATIENCE = 9

# Texts of each act. A response is read by its keyword; a response with the keywords of no act, or
# of several, is "other".
RESPONSES: Mapping[Act, tuple[str, ...]] = {
    "listening": (
        "i hear you .",
        "i am here and i hear you .",
        "tell me more , i hear you .",
        "take your time , i hear you .",
    ),
    "advice": (
        "let us make a plan .",
        "you could make a plan today .",
        "a small plan may help .",
        "how about a plan for today ?",
    ),
    "courage": (
        "you are strong .",
        "i know you are strong .",
        "you are strong and you can do it .",
        "you were strong before .",
    ),
    "distraction": (
        "let us play a game .",
        "a game may be nice .",
        "how about a game today ?",
        "do you know a good game ?",
    ),
    "question": (
        "what do you need ?",
        "tell me , what do you need ?",
        "what do you need today ?",
        "do you know what you need ?",
    ),
    "other": ("okay .", "i see .", "hello .", "that is life ."),
}
KEYWORDS: Mapping[str, Act] = {
    "hear": "listening",
    "plan": "advice",
    "strong": "courage",
    "game": "distraction",
    "need": "question",
}

# Words that show a need in passing, and the answer to a question.
HINTS: Mapping[Need, tuple[str, ...]] = {
    "listening": ("nobody ever listens to me .", "i am so alone with this ."),
    "advice": ("i do not know what to do .", "i can not find a way out ."),
    "courage": ("i am afraid to fail .", "i do not believe in myself ."),
    "distraction": ("i think about it all day .", "i can not stop thinking ."),
}
CONFESSIONS: Mapping[Need, str] = {
    "listening": "i want someone who listens .",
    "advice": "i want to know what to do .",
    "courage": "i want to believe in myself .",
    "distraction": "i want to stop thinking .",
}
GREETINGS = ("hi .", "hello .")
VAGUE = "i feel bad today ."

# The first words of a reaction determine the change.
REACTIONS: Mapping[Change, str] = {
    "relief": "thank you , that helps .",
    "unmoved": "that does not help .",
    "upset": "that makes it worse .",
    "reveal": "well ,",
    "tired": "so many questions .",
    "lost": "what do you mean ?",
}
FAREWELL = "i feel good now , bye ."
LEAVING = "i have to go ."

OPENING_HINT = 0.85  # chance that the opening shows the need
REACTION_HINT = 0.5  # chance that a reaction that did not help shows it again
# change -> probability, by the relation of act and need
FITTING: Mapping[Change, float] = {"relief": 0.85, "unmoved": 0.15}
WRONG: Mapping[Change, float] = {"unmoved": 0.55, "upset": 0.45}
ASKED: Mapping[Change, float] = {"reveal": 0.7, "tired": 0.3}
IDLE: Mapping[Change, float] = {"lost": 1.0}
# change -> added to (distress, patience)
EFFECTS: Mapping[Change, tuple[int, int]] = {
    "relief": (-2, 0),
    "unmoved": (0, -1),
    "upset": (1, -1),
    "reveal": (0, 0),
    "tired": (0, -1),
    "lost": (0, -1),
}


@dataclasses.dataclass(frozen=True)
class Mood:
    """The hidden state that changes: distress 1..5, patience left (0: the user leaves)."""

    distress: int
    patience: int

    @property
    def over(self) -> bool:
        """Whether the user ends the dialogue: relieved, or out of patience."""
        return self.distress == 1 or self.patience <= 0

    def after(self, change: Change) -> Mood:
        """Return the state after a change."""
        distress, patience = EFFECTS[change]
        return Mood(min(SCALE, max(1, self.distress + distress)), self.patience + patience)


class Reaction(NamedTuple):
    """A possible turn of the user, its probability, and the state after it."""

    probability: float
    text: str
    mood: Mood


def act_of(response: str) -> Act:
    """Return the act that the user reads from a response, by its keyword."""
    words = {word.strip(".,?!") for word in response.lower().split()}
    acts: list[Act] = [act for keyword, act in KEYWORDS.items() if keyword in words]
    return acts[0] if len(acts) == 1 else "other"


def need_of(condition: UserCondition) -> Need:
    """Return the hidden need.

    Raises:
        InputError: the condition has none of `NEEDS`.
    """
    for need in NEEDS:
        if condition.attributes.get("need") == need:
            return need
    raise _bad_condition(condition, "need", f"one of {', '.join(NEEDS)}")


def initial_mood(condition: UserCondition) -> Mood:
    """Return the state before the first turn.

    Raises:
        InputError: distress or patience is missing or out of range.
    """
    distress = _whole_number(condition, "distress", 2, SCALE)
    return Mood(distress, _whole_number(condition, "patience", 1, MOST_PATIENCE))


def _whole_number(condition: UserCondition, name: str, low: int, high: int) -> int:
    value = condition.attributes.get(name)
    # A corpus from a JSON file may say 4.0.
    if isinstance(value, int | float) and value in range(low, high + 1):
        return int(value)
    raise _bad_condition(condition, name, f"a whole number from {low} to {high}")


def _bad_condition(condition: UserCondition, name: str, expected: str) -> InputError:
    found = repr(condition.attributes[name]) if name in condition.attributes else "missing"
    return InputError(f"condition {condition.id!r}: {name} is {found}; expected {expected}")


def openings(condition: UserCondition) -> list[tuple[float, str]]:
    """Return (probability, text) of every possible opening of the user."""
    hints = HINTS[need_of(condition)]
    texts = [*((OPENING_HINT / len(hints), hint) for hint in hints), (1 - OPENING_HINT, VAGUE)]
    return [
        (p / len(GREETINGS), f"{greeting} {text}")
        for (p, text), greeting in itertools.product(texts, GREETINGS)
    ]


def reactions(need: Need, mood: Mood, response: str) -> list[Reaction]:
    """Return every possible reaction to a response, with probabilities that sum to 1."""
    found = []
    for change, chance in _changes(need, act_of(response)).items():
        after = mood.after(change)
        for probability, text in _wordings(need, change, after):
            found.append(Reaction(chance * probability, text, after))
    return found


def _changes(need: Need, act: Act) -> Mapping[Change, float]:
    if act == "other":
        return IDLE
    if act == "question":
        return ASKED
    return FITTING if act == need else WRONG


def _wordings(need: Need, change: Change, after: Mood) -> list[tuple[float, str]]:
    start = REACTIONS[change]
    if after.distress == 1:
        return [(1.0, f"{start} {FAREWELL}")]
    if after.over:
        return [(1.0, f"{start} {LEAVING}")]
    if change in ("reveal", "tired"):
        return [(1.0, f"{start} {CONFESSIONS[need]}")]
    if change == "relief":
        return [(1.0, start)]
    hints = [(REACTION_HINT / len(HINTS[need]), f"{start} {hint}") for hint in HINTS[need]]
    return [(1 - REACTION_HINT, start), *hints]


def mood_in(dialogue: Dialogue) -> Mood:
    """Return the hidden state at the end of a dialogue, from its reactions.

    Words that this world's user never says (a simulator's) reduce patience alone.
    """
    mood = initial_mood(dialogue.condition)
    for before, turn in itertools.pairwise(dialogue.turns):
        if before.role == "policy" and turn.role == "user":
            mood = mood.after(_change_in(turn.text))
    return mood


def _change_in(text: str) -> Change:
    for change, start in REACTIONS.items():
        if text.startswith(start):
            return change
    return "lost"


def shown_need(dialogue: Dialogue) -> Need | None:
    """Return the need that the user's words have shown so far; None while they were vague.

    A policy can know no more: it reads the turns, never the condition.
    """
    for turn in reversed(dialogue.turns):
        if turn.role == "user":
            for need in NEEDS:
                if turn.text.endswith((*HINTS[need], CONFESSIONS[need])):
                    return need
    return None


def engagement(condition: UserCondition, mood: Mood) -> float:
    """Return the relief in [0, 1], as in emotional support."""
    return relief(initial_mood(condition).distress, mood.distress)
