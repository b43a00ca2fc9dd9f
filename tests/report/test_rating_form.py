"""The rating form in a browser: chosen answers are scored answers."""

from __future__ import annotations

from ixjax.evaluation import RatingConfig
from ixjax.pipeline import export_rating, score_ratings
from tests.report.runs import hostile, write_run


def test_a_form_that_was_filled_in_is_scored(tmp_path, opened):
    export_rating(write_run(tmp_path), RatingConfig())
    watched = opened(tmp_path / "rating" / "form.html")
    page = watched.page
    page.get_by_role("button", name="Save to a file").click()
    assert watched.texts(".status")[0].startswith("Enter your name or number first")
    page.get_by_label("Your name or number").fill("李 B.")
    for choice in ("A", "no difference"):
        page.get_by_label(choice, exact=True).check()
        page.get_by_role("button", name="Next").click()
    assert "Item 3 of 3; 2 rated." in watched.texts(".status")
    page.get_by_role("button", name="Back").click()
    assert page.get_by_label("no difference").is_checked()
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save to a file").click()
    assert waiting.value.suggested_filename == "ratings-李_B_.json"
    path = tmp_path / "ben.json"
    waiting.value.save_as(path)
    found = score_ratings(tmp_path, [path])
    assert [r["rater"] for r in found["by_rater"]] == ["李 B."]
    assert (found["items"], found["votes"]["tie"]) == (2, 1)


def test_hostile_texts_in_the_form_are_texts(tmp_path, opened):
    write_run(tmp_path, say=hostile)
    export_rating(tmp_path, RatingConfig())
    watched = opened(tmp_path / "rating" / "form.html", viewport={"width": 390, "height": 800})
    page = watched.page
    assert f"user{hostile('hello')}" in watched.texts(".dialogue li")
    assert page.locator("img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_second_rater_at_one_computer_begins_anew(tmp_path, opened):
    export_rating(write_run(tmp_path), RatingConfig())
    page = opened(tmp_path / "rating" / "form.html").page
    name = page.get_by_label("Your name or number")
    name.fill("Ben")
    page.get_by_label("A", exact=True).check()
    page.reload()
    page.get_by_role("button", name="Another rater").click()
    assert (name.input_value(), page.locator("input:checked").count()) == ("", 0)
    name.fill("Ann")
    page.get_by_label("B", exact=True).check()
    page.reload()
    page.get_by_role("button", name="Continue as Ben (1 rated)").click()
    assert (name.input_value(), page.locator("input:checked").input_value()) == ("Ben", "A")


def test_two_raters_at_once_lose_nothing_of_each_others(tmp_path, opened):
    export_rating(write_run(tmp_path), RatingConfig())
    form = tmp_path / "rating" / "form.html"
    first = opened(form).page
    second = first.context.new_page()
    second.goto(form.as_uri())
    for page, rater in ((first, "Ann"), (second, "Ben"), (first, "Ann B.")):
        page.get_by_label("Your name or number").fill(rater)
        page.get_by_label("A", exact=True).check()
    first.wait_for_function("localStorage.length === 2")
    first.reload()
    names = first.get_by_role("button").all_inner_texts()
    assert names == [
        "Continue as Ann B. (1 rated)",
        "Continue as Ben (1 rated)",
        "Another rater",
    ]


def test_what_a_browser_kept_of_another_form_is_passed_over(tmp_path, opened):
    export_rating(write_run(tmp_path), RatingConfig())
    watched = opened(tmp_path / "rating" / "form.html")
    watched.page.evaluate(
        "for (const [id, text] of ['null', '{}', '[]', '{'].entries())"
        "  localStorage.setItem(`ixjax-rating-${dataOf('task').task}-${id}`, text)"
    )
    watched.page.reload()
    assert "Item 1 of 3; 0 rated." in watched.texts(".status")
