"""Chat: what a person types and sees, with scripted lines."""

from __future__ import annotations

import io as streams
import json
import math
import shutil

import pytest
from rich.console import Console

from ixjax.commands.chat import Settings
from ixjax.commands.conversation import Conversation, _Lines
from ixjax.dialogue import Dialogue, Turn, UserCondition, get_scenario
from ixjax.dialogue.chat import ChatTemplate, View
from ixjax.dialogue.corpora import read_dialogues
from ixjax.dialogue.types import OutcomeReading
from ixjax.generation import Engine, EngineConfig, ModelSpeaker, SamplingConfig, Session
from ixjax.search import SearchConfig, SearchingPolicy, ThinkingSession
from ixjax.testing import ScriptedSpeaker, byte_tokenizer, tiny_model
from tests.commands.conftest import untrained_run

CONDITION = UserCondition("c", {"need": "advice", "distress": 4, "patience": 3})
CUT = "(cut: the turn has --sampling.max-new-tokens tokens)\n"


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.from_tokenizer(byte_tokenizer())


@pytest.fixture(scope="module")
def model(template):
    return tiny_model(template.vocab_size, max_length=192)


@pytest.fixture
def talk(model, template, tmp_path):
    """Return a function that holds a conversation of lines; what was shown, and the session."""

    def hold(*lines, role="policy", scenario="sandbox", turns=(), session=None):
        if session is None:
            view = View(scenario=get_scenario(scenario), role=role, template=template)
            speaker = ModelSpeaker(model, view, SamplingConfig(max_new_tokens=8), seed=0)
            session = Session(speaker, Dialogue("d", CONDITION, tuple(turns)))
        shown, typed = streams.StringIO(), iter(lines)

        def read(prompt: str) -> str:
            line = next(typed, EOFError)
            if isinstance(line, str):
                return line
            raise line

        console = Console(file=shown, width=80, markup=False, emoji=False, highlight=False)
        folder = tmp_path / "chats"
        Conversation(session, console, read, folder=folder, name="chat").hold()
        return shown.getvalue(), session

    return hold


@pytest.mark.slow
def test_the_model_answers_every_line_and_blank_ones_are_nothing(talk):
    shown, session = talk("hi .", "   ", " i need advice . ")
    said = [turn for turn in session.dialogue.turns if turn.role == "policy"]
    assert [turn.text for turn in session.dialogue.turns[::2]] == ["hi .", "i need advice ."]
    assert shown.count("policy: ") == len(said) == 2


def test_a_turn_cut_by_its_limit_says_so(talk):
    shown, session = talk("hi .")
    assert session.last.truncated
    assert CUT in shown


@pytest.mark.parametrize("end", ["/quit", EOFError, KeyboardInterrupt])
def test_every_way_to_end_ends_cleanly(talk, end):
    shown, session = talk(end, "hi .")
    assert shown == "\n"
    assert not session.dialogue.turns


def test_ctrl_c_while_the_model_speaks_ends_cleanly(talk, monkeypatch):
    def interrupted(self, text):
        yield "okay"
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "say", interrupted)
    shown, _ = talk("hi .", "never read")
    assert shown == "policy: okay\n\n"


def test_undo_shows_where_the_dialogue_stands(talk):
    _, session = talk("hi .", "why ?", "/undo")
    assert len(session.dialogue.turns) == 2
    shown, session = talk("hi .", "why ?", "/undo", "/undo", "/undo")
    assert not session.dialogue.turns
    assert shown.endswith("taken back\nthere is nothing to take back\n\n")
    shown = shown.replace(CUT, "")
    first, _, again = (part.splitlines() for part in shown.split("policy: ")[1:])
    assert again[: len(first)] == first


def test_restart_begins_again(talk):
    _, session = talk("hi .", "/restart", "why ?")
    assert [turn.text for turn in session.dialogue.turns[:1]] == ["why ?"]


def test_a_policy_that_opens_speaks_first_and_again_after_restart(talk):
    shown, session = talk("/restart", scenario="p4g")
    assert shown.count("policy: ") == 2
    assert len(session.dialogue.turns) == 1


def test_with_the_simulator_each_turn_is_followed_by_its_outcome(talk):
    shown, session = talk("okay .", role="user", turns=[Turn("user", "hi .")])
    lines = shown.splitlines()
    assert lines[0] == "user: hi ."
    assert lines[1].startswith("(engagement 0.")
    assert ", final distress " in lines[1]
    assert lines[2].startswith("user: ")
    reading = session.outcome()
    expected = f"(engagement {reading.engagement:.2f}, final distress {reading.value:.2f})"
    assert lines[-2] == expected


def test_a_simulator_that_leaves_is_said_and_can_be_called_back(talk, monkeypatch, template):
    def leaves(self, requests, *_, **__):
        for request in requests:
            request.tokens = [*template.marker_ids, template.end_ids[0]]
            self.extend({request.context: request.tokens[:-1]})  # an end token is not read
            request.ended = request.done = True
        return requests

    monkeypatch.setattr(Engine, "step", leaves)
    opened = [Turn("user", "hi .")]
    shown, session = talk("okay .", "wait .", "/undo", role="user", turns=opened)
    assert "(the user has left)" in shown
    assert "the dialogue is over: /restart, /undo, /save or /quit" in shown
    assert session.dialogue.turns == tuple(opened)


@pytest.fixture
def thinking():
    """A policy that searches, with a user whose every reaction is the same."""
    policy = ScriptedSpeaker("policy", lambda dialogue: {"okay .": 0.5, "no .\nnever .": 0.5})
    user = ScriptedSpeaker("user", lambda dialogue: {"so ?": 1.0}, reading=kindness)
    config = SearchConfig(iterations=3, width=8, max_turns=2, trees=1)
    searching = SearchingPolicy(policy, user, get_scenario("sandbox"), config, choose="value")
    return ThinkingSession(searching, Dialogue("d", CONDITION, ()))


def kindness(dialogue: Dialogue) -> OutcomeReading:
    """The share of "okay ." among the policy's turns."""
    said = [turn.text for turn in dialogue.turns if turn.role == "policy"]
    share = said.count("okay .") / max(len(said), 1)
    return OutcomeReading(share, share)


def test_a_policy_that_thinks_shows_what_it_considered(talk, thinking):
    shown, session = talk("/why", "hi .", "/why", session=thinking)
    lines = shown.splitlines()
    assert lines[0] == "nothing was considered: the policy has not spoken yet"
    assert lines[1:3] == ["policy: okay .", "mean return  visits  response (the first was said)"]
    best, other = (line.split(maxsplit=2) for line in lines[3:5])
    assert (best[2], other[2]) == ("okay .", "no . never .")
    assert float(best[0]) > float(other[0])
    assert min(int(best[1]), int(other[1])) > 0
    assert session.dialogue.turns[1].text == "okay ."


def test_undo_and_restart_take_back_what_was_thought(talk, thinking):
    first = "\n".join(talk("hi .", "/why", session=thinking)[0].splitlines()[1:-1])
    shown, session = talk("so ?", "/undo", "/why", "/restart", "/why", session=thinking)
    assert f"taken back\npolicy: okay .\n{first}\n" in shown
    assert shown.endswith("nothing was considered: the policy has not spoken yet\n\n")
    assert not session.dialogue.turns


def test_what_a_policy_that_thinks_said_is_saved(talk, thinking, tmp_path):
    talk("hi .", "so ?", "/save", session=thinking)
    [saved] = read_dialogues(tmp_path / "chats" / "chat.jsonl")
    assert [turn.text for turn in saved.turns[1::2]] == ["okay .", "okay ."]


def test_outcomes_that_cannot_be_read_are_shown_as_such(talk, thinking, monkeypatch):
    nothing = OutcomeReading(math.nan, math.nan)
    monkeypatch.setattr(thinking.policy._sides[1], "_reading", lambda dialogue: nothing)
    shown, _ = talk("hi .", "/why", session=thinking)
    first = shown.partition("(the first was said)\n")[2].splitlines()[0]
    assert first.split()[:2] == ["unreadable", "0"]


def test_without_thinking_there_is_no_why(talk):
    shown, _ = talk("hi .", "/why")
    assert "nothing was considered: --think N lets the policy search" in shown


def test_help_and_unknown_commands(talk):
    shown, session = talk("/help", "/hepl me", "//shrug")
    assert "/save [FILE]" in shown
    assert "there is no /hepl" in shown
    assert session.dialogue.turns[0] == Turn("user", "/shrug")
    shown, session = talk("hi .", "/undo 3", "/restart now")
    assert "/undo takes no argument; nothing was done" in shown
    assert "/restart takes no argument; nothing was done" in shown
    assert len(session.dialogue.turns) == 2


def test_save_writes_a_record_of_the_corpus_form(talk, tmp_path):
    file = tmp_path / "own" / "mine.jsonl"
    lines = ("hi .", f"/save {file}", "why ?", f"/save {file}", "/restart", "yes .", "/save")
    shown, _ = talk(*lines[:-1], f"/save {file}", "/save")
    first, second = read_dialogues(file)
    assert [first.id, second.id] == ["chat-1", "chat-2"]  # saved again, it is replaced
    assert len(first.turns) == 4
    assert second.turns[0] == Turn("user", "yes .")
    assert first.condition.attributes == CONDITION.attributes
    assert "(dialogues in it: 2)" in shown
    [alone] = read_dialogues(tmp_path / "chats" / "chat.jsonl")
    assert alone == second


def test_save_adds_to_ones_own_corpus_as_it_is(talk, tmp_path):
    file = tmp_path / "mine.jsonl"
    own = {"id": "own", "condition": {}, "turns": [{"role": "user", "text": "hi"}], "mark": 1}
    file.write_text(json.dumps(own) + "\n")
    shown, _ = talk("hi .", f"/save {file}")
    assert "(dialogues in it: 2)" in shown
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == own
    assert second["id"] == "chat-1"
    for broken, message in (
        ({"prompt": "hi"}, ":1: expected a dialogue with `id` and `turns`"),
        ({**own, "schema": "ixjax.pairs"}, ":1: expected schema"),
    ):
        file.write_text(json.dumps(broken) + "\n")
        shown, _ = talk("hi .", f"/save {file}")
        assert message in shown
        assert json.loads(file.read_text()) == broken
    file.write_text(2 * (json.dumps(own) + "\n"))
    assert ":2: id is 'own'" in talk("hi .", f"/save {file}")[0]


def test_save_never_touches_a_file_that_is_not_of_this_form(talk, tmp_path):
    file = tmp_path / "thesis.txt"
    file.write_text("years of work")
    shown, _ = talk("/save", "hi .", f"/save {file}", f"/save {tmp_path}")
    assert "not saved: a dialogue has turns of both sides" in shown
    assert f"not saved: {file}:1: not JSON" in shown
    assert shown.count("not saved") == 3
    assert file.read_text() == "years of work"


def test_what_cannot_be_said_is_reported_and_the_conversation_goes_on(talk):
    bad = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    shown, session = talk("x" * 300, "\ud800", bad, "hi .")
    assert "not said: dialogue 'd': the policy's system text and the newest turn" in shown
    assert "policy: not said" not in shown
    assert "not said: the turn holds a lone surrogate" in shown
    assert "not said: the line is not utf-8 text" in shown
    assert len(session.dialogue.turns) == 2


def test_a_full_context_is_reported(talk):
    shown, _ = talk(*["i feel bad today and i can not stop thinking ."] * 5)
    assert "forgotten the oldest turns" in shown


def test_what_a_terminal_would_obey_is_not_printed():
    file = streams.StringIO()
    with _Lines(Console(file=file, width=80, markup=False), indent=0) as lines:
        lines.add("a\x1b[2J b\x9b1m \x07[bold]c[/bold]\u200d")
    assert file.getvalue() == "a[2J b1m [bold]c[/bold]\u200d\n"


def test_lines_break_between_words_wherever_the_pieces_do():
    text = "seven words of text\nin two lines, 漢字漢字 " + "x" * 70
    outputs = set()
    for size in (1, 2, 3, len(text)):
        file = streams.StringIO()
        console = Console(file=file, width=24, markup=False)
        with _Lines(console, indent=4) as lines:
            for at in range(0, len(text), size):
                lines.add(text[at : at + size])
        outputs.add(file.getvalue())
    [shown] = outputs
    assert shown.splitlines()[:3] == [
        "seven words of text",
        "    in two lines,",
        "    漢字漢字 "[:8],
    ]


def test_the_real_command_talks_as_a_user(untrained, command, monkeypatch):
    out = str(untrained.directory.root)
    lines = iter(["hi .", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, shown, error = command("chat", "--out", out)
    assert (code, error) == (0, "")
    assert f"policy_dpo/imcts of {out} is the policy, you are the user." in shown
    assert "\npolicy: " in shown


def test_the_real_command_talks_as_a_policy_under_a_condition(
    untrained, command, monkeypatch, tmp_path
):
    root, file = untrained.roots("test")[1], tmp_path / "chat.jsonl"
    lines = iter(["okay .", f"/save {file}", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    flags = ("--as", "policy", "--condition", root.condition.id, "--sampling.max-new-tokens", "5")
    code, shown, error = command("chat", "--out", str(untrained.directory.root), *flags)
    assert (code, error) == (0, "")
    assert f"The user's condition, {root.condition.id}: you want" in shown
    assert f"\nuser: {root.turns[0].text}\n(engagement 0." in shown
    record = json.loads(file.read_text().splitlines()[1])
    assert record["condition"] == dict(root.condition.attributes)
    assert record["groups"] == list(root.groups)


@pytest.mark.slow
def test_the_real_command_thinks_before_it_speaks(untrained, command, monkeypatch):
    """Under the first held-out condition; the same seed and words get the same answers."""

    def talk(seed: str) -> str:
        lines = iter(["hi .", "/why", "i need advice .", "/undo", "why ?", "/why", "/quit"])
        monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
        flags = ("--think", "2", "--search.width", "3", "--sampling.max-new-tokens", "5")
        flags += ("--search.rollouts", "1", "--engine.rows", "4", "--seed", seed)
        code, shown, error = command("chat", "--out", str(untrained.directory.root), *flags)
        assert (code, error) == (0, "")
        return shown

    shown = talk("0")
    assert f"The user's condition, {untrained.roots('test')[0].condition.id}: you want" in shown
    assert "it searches, with simulator as a user in this condition" in shown
    first, second = (
        part.splitlines() for part in shown.split("response (the first was said)\n")[1:]
    )
    means = [float(line.split()[0]) for line in first if line.split()[0][:2] in ("0.", "1.")]
    assert means == sorted(means, reverse=True)
    assert 1 <= len(means) <= 3
    assert f"policy: {first[0].split(maxsplit=2)[2]}" in shown
    assert f"policy: {second[0].split(maxsplit=2)[2]}" in shown
    assert talk("0") == shown
    assert talk("1") != shown


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ({}, 1),
        ({"think": 4}, 16),  # 12 dialogues are played in an iteration
        ({"think": 4, "engine": EngineConfig(rows=8)}, 8),
    ],
)
def test_the_engine_has_no_more_rows_than_a_chat_fills(flags, rows):
    search = SearchConfig(width=3, leaves=2, rollouts=2)
    assert Settings(search=search, **flags).layout.rows == rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--out", "nowhere"), "nowhere: no run directory (config.yaml is missing); make one with"),
        ((), "no model given. Set --out RUN"),
        (("--model", "."), "--scenario is not set"),
        (("--model", ".", "--scenario", "esc"), "config.json: no such file"),
        (("--model", ".", "--scenario", "esc", "--as", "policy"), "only a run holds conditions"),
        (
            ("--model", ".", "--scenario", "esc", "--think", "4"),
            "--think is 4 without a run; expected --out RUN",
        ),
    ],
)
def test_bad_flags_are_one_line(command, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = command("chat", *flags)
    assert code == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_a_tokenizer_that_is_gone_is_written_again_by_prepare(untrained, command, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(untrained.directory.root, out)
    shutil.rmtree(out / "tokenizer")
    code, _, error = command("chat", "--out", str(out))
    assert code == 2
    assert f"{out / 'tokenizer'}: no such folder" in error
    assert "`ixjax prepare`" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model", "policy_dop/imcts"), "perhaps you meant policy_dpo/imcts"),
        (("--model", "policy_dpo/mix"), "policy_dpo/mix is not finished here; run `ixjax dpo`"),
        (("--model", "simulator"), "simulator, which speaks for the user; expected one that"),
        (("--as", "policy", "--model", "simulator_heldout"), "run `ixjax sft`"),
        (("--condition", "sandbox-0"), "perhaps you meant sandbox-0-"),
        (("--scenario", "esc"), "--scenario is 'esc'; expected 'sandbox'"),
        (("--sampling.max-new-tokens", "500"), "set a smaller --sampling.max-new-tokens"),
        (("--think", "2", "--as", "policy"), "--think is 2 with --as policy; expected --as user"),
        (("--think", "-1"), "--think is -1; expected 0 or more"),
        (("--think", "2", "--condition", "sandbox-0"), "perhaps you meant sandbox-0-"),
    ],
)
def test_bad_flags_with_a_run_are_one_line(untrained, command, flags, message):
    before = (untrained.directory.config).read_bytes()
    code, _, error = command("chat", "--out", str(untrained.directory.root), *flags)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert untrained.directory.config.read_bytes() == before


def test_a_run_without_a_simulator_does_not_think(tmp_path, command):
    run = untrained_run(tmp_path / "run", models=("policy_sft",))
    code, _, error = command("chat", "--out", str(run.directory.root), "--think", "2")
    assert code == 2
    assert "--think is 2, which needs a simulator; " in error
    assert "simulator is not finished here; run `ixjax sft`" in error
