"""The page in a browser: quiet, whole without a network, and the explorer as a reader uses it."""

from __future__ import annotations

import json

import pytest

from ixjax.report import write_report
from tests.report.runs import METHODS, USERS, hostile, hostile_name, tree, write_run

LARGE = 5000  # nodes


@pytest.fixture(scope="module")
def page_path(tmp_path_factory):
    return write_report([str(write_run(tmp_path_factory.mktemp("run")))])[0]


@pytest.fixture(scope="module")
def hostile_path(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / hostile_name("run")
    return write_report([str(write_run(root, say=hostile, name=hostile_name))])[0]


@pytest.fixture(scope="module")
def large_path(tmp_path_factory):
    return write_report([str(write_run(tmp_path_factory.mktemp("large"), nodes=LARGE))])[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_quiet_needs_no_network_and_draws_every_plot(opened, page_path, width, scheme):
    viewport = {"width": width, "height": 900}
    watched = opened(page_path, viewport=viewport, color_scheme=scheme)
    page = watched.page
    places = page.locator("[data-plot]")
    assert places.count() == 14
    for i in range(places.count()):
        assert places.nth(i).locator(".trace").count() > 0
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out


def test_plots_follow_the_page_from_light_to_dark(opened, page_path):
    page = opened(page_path).page
    point = page.locator("[data-plot] .point").first
    light = point.evaluate("e => getComputedStyle(e).fill")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "light => getComputedStyle(document.querySelector('[data-plot] .point')).fill !== light",
        arg=light,
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"


def rows(watched) -> list[str]:
    return watched.texts(".tree .said")


def test_a_row_that_is_chosen_shows_the_dialogue_up_to_it(opened, page_path):
    watched = opened(page_path)
    # The most visited path is open: of equal visits, the response that was added first.
    assert rows(watched) == ["hello", "response 0", "reaction 0", "response 1", "response 2"]
    assert watched.texts(".reading li") == ["userhello", "policyresponse 0", "userreaction 0"]
    watched.page.get_by_text("response 2", exact=True).click()
    assert watched.texts(".reading li") == ["userhello", "policyresponse 2"]
    assert "Q 0.100, 4 returns, turn 1 below the root" in watched.texts(".reading .status")[0]


def test_responses_of_pairs_are_marked(opened, page_path):
    watched = opened(page_path)
    marked = watched.page.locator(".tree .row", has=watched.page.locator(".mark"))
    found = [row.locator(".said, .mark").all_text_contents() for row in marked.all()]
    assert found == [["response 0", "▲ chosen"], ["response 2", "▼ rejected"]]


def test_another_condition_shows_another_tree(opened, page_path):
    watched = opened(page_path)
    watched.page.locator("[data-select=tree]").select_option(label="user-1")
    assert watched.texts(".tree .mark") == []
    assert rows(watched)[0] == "hello"


def test_a_small_tree_comes_after_a_large_one(opened, large_path):
    """The node selected in the large tree has an id that the small one lacks."""
    watched = opened(large_path)
    choose = watched.page.locator("[data-select=tree]").select_option
    choose(label="user-1")
    assert rows(watched) == ["hello", "response 0", "reaction 0", "response 1", "response 2"]
    assert watched.texts(".reading li") == ["userhello", "policyresponse 0", "userreaction 0"]
    choose(label="user-0")
    assert passing(watched) == LARGE


def test_keys_walk_the_tree(opened, page_path):
    watched = opened(page_path)
    page = watched.page
    page.locator(".tree").focus()
    for key, chosen in (
        ("Home", "hello"), ("ArrowDown", "response 0"), ("ArrowLeft", "response 0"),
        ("ArrowDown", "response 1"), ("ArrowRight", "response 1"), ("ArrowRight", "reaction 1"),
        ("ArrowLeft", "response 1"), ("ArrowLeft", "response 1"), ("ArrowLeft", "hello"),
        ("End", "response 2"), ("PageUp", "hello"),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert watched.texts(".tree [aria-selected=true] .said") == [chosen], key
    active = page.locator(".tree").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-expanded") == "true"


def passing(watched) -> int:
    """How many nodes the page says pass its filters."""
    (status,) = watched.texts("[data-widget=explorer] > .status")
    return int(status.split("nodes, ")[1].split(" pass")[0].replace(",", ""))


def test_filters_let_through_what_they_say(opened, large_path):
    watched = opened(large_path)
    page, nodes = watched.page, tree("user-0", LARGE, str)["nodes"]

    def fill(name, value):
        page.locator(f"[data-filter={name}]").fill(value)

    assert passing(watched) == LARGE
    fill("depth", "3")
    assert passing(watched) == sum(node["depth"] <= 3 for node in nodes)
    fill("visits", "2")
    assert passing(watched) == sum(node["depth"] <= 3 and node["visits"] >= 2 for node in nodes)
    fill("depth", "")
    assert passing(watched) == sum(node["visits"] >= 2 for node in nodes)
    fill("visits", "")
    fill("margin", "0.75")
    # Only the root's responses differ so much: 0.9 to 0.1.
    assert passing(watched) == 4
    fill("margin", "0.85")
    assert passing(watched) == 0
    fill("margin", "")
    page.locator("[data-filter=marked]").check()
    assert passing(watched) == 2
    assert rows(watched) == ["hello", "response 0", "response 2"]


def test_of_a_large_tree_only_what_is_in_sight_is_there(opened, large_path):
    watched = opened(large_path)
    page = watched.page
    page.get_by_role("button", name="Open all").click()
    assert "5,000 rows are open" in watched.texts("[data-widget=explorer] > .status")[0]
    assert 20 < page.locator(".tree .row").count() < 60
    page.locator(".tree").evaluate("e => { e.scrollTop = e.scrollHeight }")
    page.wait_for_function("document.querySelector('.tree [data-place=\"4999\"]') !== null")
    assert 20 < page.locator(".tree .row").count() < 60
    page.locator(".tree").focus()
    page.keyboard.press("End")
    assert page.locator(".tree [data-place='4999']").get_attribute("aria-selected") == "true"
    # The end of the chain below the last response, whose nodes are 3, 6, 9, ...
    last = [node for node in tree("user-0", LARGE, str)["nodes"] if node["id"] % 3 == 0][-1]
    assert page.locator(".reading li").count() == 1 + last["depth"]


def test_the_map_leads_to_what_it_shows(opened, page_path):
    watched = opened(page_path)
    watched.page.locator(".map").click(position={"x": 1100, "y": 18})  # second row, at the right
    assert watched.texts(".tree [aria-selected=true] .said") == ["response 2"]


def test_the_map_shows_a_mean_return_beyond_one_as_full_and_one_below_zero_as_empty(
    opened, tmp_path
):
    trees = write_run(tmp_path) / "trees" / "trees-00000-of-00001.jsonl"
    head, *others = trees.read_text().splitlines()
    first = json.loads(others[0])
    for node, total in ((1, 8.0), (2, 4.0), (3, -4.0)):  # of 4 returns each: 2, 1 and -1
        first["nodes"][node]["value_sum"] = total
    trees.write_text("\n".join([head, json.dumps(first), *others[1:]]))
    page = opened(write_report([str(tmp_path)])[0]).page
    row = page.locator(".map").evaluate(
        "map => [...map.getContext('2d').getImageData(0, 18, map.width, 1).data]"
    )
    pixels = [row[i : i + 4] for i in range(0, len(row), 4)]
    two, one, below = (pixels[len(pixels) * i // 6] for i in (1, 3, 5))
    assert two == one
    assert below[3] == pytest.approx(0.12 * 255, abs=1)


def test_dialogues_of_two_methods_stand_side_by_side(opened, page_path):
    watched = opened(page_path)
    page = watched.page
    said = "[data-widget=dialogues] .dialogue .policy"
    assert watched.texts(said) == ["policysft answers", "policydpo_imcts answers"]
    page.locator("[data-select=method-0]").select_option("dpo_imcts")
    assert watched.texts(said) == ["policydpo_imcts answers"] * 2
    users = page.locator("[data-select=user] option").evaluate_all("o => o.map(e => e.value)")
    methods = page.locator("[data-select=method-1] option").evaluate_all("o => o.map(e => e.value)")
    assert (users, methods) == (list(USERS), list(METHODS))
    page.locator("[data-select=condition]").select_option(label="user-2")
    assert watched.texts(said) == ["policydpo_imcts answers"] * 2


def test_hostile_texts_are_texts(opened, hostile_path):
    watched = opened(hostile_path)
    page = watched.page
    assert hostile("response 0") in rows(watched)
    page.get_by_text(hostile("response 2"), exact=True).click()
    assert f"policy{hostile('response 2')}" in watched.texts(".reading li")
    assert f"policy{hostile('sft answers')}" in watched.texts(".dialogue .policy")
    assert hostile_name("user-0") in watched.texts("[data-select=tree] option")
    ticks = "".join(watched.texts("[data-plot] .xtick text, [data-plot] .ytick text"))
    for name in ("dpo_imcts", "evaluate"):
        assert f"{name} <img" in ticks.replace("\xa0", " ")
    assert page.locator("img").count() == 0


def test_the_page_lets_no_other_script_run_and_nothing_be_fetched(opened, page_path):
    """The second line of defence: even unescaped markup has no effect."""
    watched = opened(page_path, quiet=False)
    watched.page.evaluate("""() => {
        const markup = "<img src='data:,' onerror='window.ran = 1'>";
        document.body.insertAdjacentHTML("beforeend", markup);
        const script = document.createElement("script");
        script.textContent = "window.ran = 2";
        document.body.append(script);
        const image = document.createElement("img");
        image.src = "http://localhost/image.png";
        document.body.append(image);
    }""")
    watched.page.wait_for_timeout(300)
    assert watched.page.evaluate("window.ran") is None
    refused = [text for text in watched.complaints if "Content Security Policy" in text]
    assert len(refused) == len(watched.complaints) == 3


def test_several_runs_can_be_chosen_from(opened, tmp_path):
    roots = [str(write_run(tmp_path / name, say=f"{name} {{}}".format)) for name in ("one", "two")]
    watched = opened(write_report(roots)[0])
    run = watched.page.locator("[data-widget=explorer] select").first
    run.select_option(label="two")
    assert rows(watched)[1] == "two response 0"
    watched.page.locator("[data-select=run]").select_option(label="two")
    assert watched.texts(".dialogue .policy")[0] == "policytwo sft answers"


@pytest.mark.parametrize("opens", [True, False], ids=["the policy opens", "the user opens"])
def test_a_run_without_a_true_user_is_shown_with_either_opening(opened, tmp_path, opens):
    """Runs of Persuasion-for-Good and ESConv: in the first no turn is there before the search."""
    users = ("simulator", "simulator_heldout")
    pages = write_report([str(write_run(tmp_path, opens=opens, users=users))])
    assert "With the held-out simulator, DPO on i×MCTS" in pages[1].read_text()
    watched = opened(pages[0])
    assert rows(watched)[0] == ("(the policy opens)" if opens else "hello")
    said = ["policyresponse 0", "userreaction 0"]
    assert watched.texts(".reading li") == (said if opens else ["userhello", *said])
    given = watched.texts("[data-widget=dialogues] .dialogue .given")
    assert given == ([] if opens else ["userhello"] * 2)
    options = watched.texts("[data-select=user] option")
    assert options == ["the search's simulator", "the held-out simulator"]
