"""A custom scenario, a help desk, from dialogues to an aligned policy in minutes."""

# %% The scenario: prompts and outcomes
import itertools
import json
import re
import tempfile
from pathlib import Path

from ixjax.dialogue import DataConfig, Outcome, register_scenario
from ixjax.evaluation import EvaluationConfig
from ixjax.generation import SamplingConfig
from ixjax.models import ModelArguments
from ixjax.pipeline import RunConfig, SilentReporter, open_run, run_all
from ixjax.search import PairsConfig, SearchConfig
from ixjax.training import DPOConfig, SFTConfig


class HelpDesk:
    """A customer whose device fails, and who finally rates the help with 1 to 3 stars."""

    name, policy_opens, outcome_unit = "help_desk", False, "stars"
    policy_prompt = "You work at a help desk. Solve the customer's problem."
    outcome_pattern = re.compile(r"^stars: ([1-3])$")

    def simulator_prompt(self, condition):
        return "You are a customer, {mood}. Your {device} fails.".format(**condition.attributes)

    def outcome_lines(self, condition):
        return [(f"stars: {stars}", self.outcome(condition, stars)) for stars in (1, 2, 3)]

    def outcome_line(self, condition, outcome):
        return f"stars: {round(outcome.value)}"

    def outcome(self, condition, value):
        return Outcome(float(value), (value - 1) / 2) if 1 <= value <= 3 else None

    def read_outcome(self, condition, line):
        found = self.outcome_pattern.search(line.strip())
        return self.outcome(condition, int(found[1])) if found else None

    def released(self, condition, outcome_value):
        return round(outcome_value) == 3


register_scenario("help_desk", HelpDesk())

# %% Dialogues: kind and correct help earns three stars
devices, moods = ("router", "printer", "phone", "screen", "camera", "radio"), ("calm", "angry")
answers = (("i am sorry . hold the power key", 3), ("hold the power key", 2), ("read the book", 1))
folder = Path(tempfile.mkdtemp())
with (folder / "dialogues.jsonl").open("w") as file:
    for i, (device, mood, (help_, stars)) in enumerate(itertools.product(devices, moods, answers)):
        said = [f"my {device} fails", help_, "it works" if stars > 1 else "no use", "goodbye"]
        turns = [{"role": r, "text": t} for r, t in zip(("user", "policy") * 2, said, strict=True)]
        record = {"id": f"d{i}", "condition": {"device": device, "mood": mood}, "turns": turns}
        file.write(json.dumps(record | {"outcome": {"value": stars}}) + "\n")

# %% All stages: fine-tune, search, align, evaluate
settings = RunConfig(
    scenario="help_desk",
    out=str(folder / "run"),
    data=DataConfig(path=str(folder / "dialogues.jsonl"), format="jsonl"),
    model=ModelArguments(hidden_size=64, num_layers=1, max_length=160),
    sft=SFTConfig(steps=40, batch_size=8),
    sampling=SamplingConfig(max_new_tokens=12),
    search=SearchConfig(conditions=8, iterations=2, max_turns=2),
    pairs=PairsConfig(min_margin=0.02),
    dpo=DPOConfig(steps=20, batch_size=8),
    evaluation=EvaluationConfig(conditions=4, max_turns=2, candidates=2),
)
done = run_all(open_run(settings), SilentReporter())

# %% The gain, with the held-out simulator
print("pairs from trees:", done["search"]["pairs"]["imcts"])
for cell in done["evaluate"]["cells"]:
    if cell["user"] == "simulator_heldout" and cell["method"] in ("sft", "dpo_imcts"):
        print(f"{cell['method']:<10} engagement {cell['engagement']:.2f}")
