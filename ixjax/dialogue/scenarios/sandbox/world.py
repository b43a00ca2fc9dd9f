"""The sandbox world: a user who is a known probabilistic program over a small closed vocabulary.

A user has a hidden need, a distress from 1 to 5 and some patience. What the policy says is read as
an act; the act that fits the need relieves, any other costs patience. What the user says tells
which change happened, so the hidden state is a function of (condition, dialogue), and expected
engagement can be enumerated exactly. Docs: docs/sandbox.md has the tables and the reasons.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal, NamedTuple

from ixjax.dialogue.scenarios.esc import relief
from ixjax.dialogue.types import Dialogue, UserCondition

Need = Literal["listening", "advice", "courage", "distraction"]
Act = Literal["listening", "advice", "courage", "distraction", "question", "other"]
Change = Literal["relief", "unmoved", "upset", "reveal", "tired", "lost"]

NEEDS: tuple[Need, ...] = ("listening", "advice", "courage", "distraction")
SCALE = 5  # distress runs from 1 to 5
RELIEF = 2  # points of distress that a fitting act takes away

# What the policy may say. A response is read by its keyword; one that has the keywords of no act,
# or of several, is "other".
RESPONSES: dict[Act, tuple[str, ...]] = {
    "listening": ("i hear you .", "i am here and i hear you .", "tell me more , i hear you ."),
    "advice": ("let us make a plan .", "you could make a plan today .", "a small plan may help ."),
    "courage": ("you are strong .", "i know you are strong .", "you are strong and you can do it ."),
    "distraction": ("let us play a game .", "a game may be nice .", "how about a game today ?"),
    "question": ("what do you need ?", "tell me , what do you need ?", "what do you need today ?"),
    "other": ("okay .", "i see .", "hello ."),
}
KEYWORDS: dict[str, Act] = {
    "hear": "listening",
    "plan": "advice",
    "strong": "courage",
    "game": "distraction",
    "need": "question",
}

# How a need shows in passing, and what the user says when asked.
HINTS: dict[Need, tuple[str, ...]] = {
    "listening": ("nobody ever listens to me .", "i am so alone with this ."),
    "advice": ("i do not know what to do .", "i can not find a way out ."),
    "courage": ("i am afraid to fail .", "i do not believe in myself ."),
    "distraction": ("i think about it all day .", "i can not stop thinking ."),
}
CONFESSIONS: dict[Need, str] = {
    "listening": "i want someone who listens .",
    "advice": "i want to know what to do .",
    "courage": "i want to believe in myself .",
    "distraction": "i want to stop thinking .",
}
GREETINGS = ("hi .", "hello .")
VAGUE = "i feel bad today ."

# The first words of a reaction tell the change, whatever follows.
REACTIONS: dict[Change, str] = {
    "relief": "thank you , that helps .",
    "unmoved": "that does not help .",
    "upset": "no , that makes it worse .",
    "reveal": "well ,",
    "tired": "so many questions .",
    "lost": "what do you mean ?",
}
FAREWELL = "i feel good now , bye ."
LEAVING = "i have to go ."

OPENING_HINT = 0.85  # chance that the opening shows the need
REACTION_HINT = 0.5  # chance that a reaction that did not help shows it again
# change -> (chance, distress, patience) by how the act relates to the need
FITTING: dict[Change, float] = {"relief": 0.85, "unmoved": 0.15}
WRONG: dict[Change, float] = {"unmoved": 0.55, "upset": 0.45}
ASKED: dict[Change, float] = {"reveal": 0.7, "tired": 0.3}
IDLE: dict[Change, float] = {"lost": 1.0}
EFFECTS: dict[Change, tuple[int, int]] = {
    "relief": (-RELIEF, 0),
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
        """The state that a change leads to."""
        distress, patience = EFFECTS[change]
        return Mood(min(SCALE, max(1, self.distress + distress)), self.patience + patience)


class Reaction(NamedTuple):
    """One thing that the user may say, and how likely."""

    probability: float
    text: str
    mood: Mood


def act_of(response: str) -> Act:
    """How the user reads a response: by the one keyword in it."""
    words = {word.strip(".,?!") for word in response.lower().split()}
    acts = {act for keyword, act in KEYWORDS.items() if keyword in words}
    return acts.pop() if len(acts) == 1 else "other"


def need_of(condition: UserCondition) -> Need:
    """The hidden need."""
    need = condition.attributes["need"]
    return next(known for known in NEEDS if known == need)


def initial_mood(condition: UserCondition) -> Mood:
    """The state before anything is said."""
    return Mood(int(condition.attributes["distress"]), int(condition.attributes["patience"]))


def openings(condition: UserCondition) -> list[tuple[float, str]]:
    """(probability, text) of everything that the user may open with."""
    hints = [(OPENING_HINT / 2, hint) for hint in HINTS[need_of(condition)]]
    return [
        (p / len(GREETINGS), f"{greeting} {text}")
        for (p, text), greeting in itertools.product(
            [*hints, (1 - OPENING_HINT, VAGUE)], GREETINGS
        )
    ]


def reactions(need: Need, mood: Mood, response: str) -> list[Reaction]:
    """Everything that the user may say to a response, with its probability; they sum to 1."""
    found = []
    for change, chance in _changes(need, act_of(response)).items():
        after = mood.after(change)
        for probability, text in _wordings(need, change, after):
            found.append(Reaction(chance * probability, text, after))
    return found


def _changes(need: Need, act: Act) -> dict[Change, float]:
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
    hints = [(REACTION_HINT / 2, f"{start} {hint}") for hint in HINTS[need]]
    return [(1 - REACTION_HINT, start), *hints]


def mood_in(dialogue: Dialogue) -> Mood:
    """The hidden state at the end of a dialogue, told by its reactions.

    Words that the user of this world never says (a simulator's) change nothing but patience.
    """
    mood = initial_mood(dialogue.condition)
    for before, turn in itertools.pairwise(dialogue.turns):
        if before.role == "policy" and turn.role == "user":
            mood = mood.after(_change_told(turn.text))
    return mood


def _change_told(text: str) -> Change:
    return next((c for c, start in REACTIONS.items() if text.startswith(start)), "lost")


def engagement(condition: UserCondition, mood: Mood) -> float:
    """Relief in [0, 1], as in emotional support."""
    initial = initial_mood(condition).distress
    return relief(initial, mood.distress)

