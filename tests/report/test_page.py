"""The page of a study, in a real browser without a network."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from pollard.errors import InvalidInput
from pollard.report.page import study_page
from pollard.report.page.build import _json, page_data

SERIES = {"dense": "dense", "SNIP": "snip", "<b>late</b>": "magnitude"}
PUBLISHED = [{"label": "SNIP", "density": 0.05, "test_accuracy": 0.97, "source": "a paper"}]


def a_point(label, method, density, seed):
    accuracy = 0.98 - 0.02 / density / 10 - seed / 100
    pruned = method != "dense"
    return {
        "label": label,
        "method": method,
        "density": density,
        "seed": seed,
        "run": f"{label}-{density}-{seed}",
        "test_accuracy": accuracy,
        "trainability": accuracy - 0.1,
        "densities": {"fc1": density / 2, "fc2": min(1.0, 2 * density)},
        "curve": [accuracy / 2, accuracy],
        "seconds_per_step": 0.001 * density,
        "peak_rss_bytes": 10**9,
        "explored_rate": density,
        "bytes": {"values": 4 * 10**5 * density, "indices": 10**5},
        "aims": {"loss": 2.3 - accuracy, "accuracy": 0.1, "first_order": float("nan")} if pruned else None,
        "recipe": {"model": "lenet-300-100", "data": "mnist", "method": method},
    }


POINTS = [
    a_point(label, method, density, seed)
    for label, method in SERIES.items()
    for density in ([1.0] if method == "dense" else [0.1, 0.05, 0.02])
    for seed in (0, 1, 2)
]


def test_data_is_json_with_nothing_that_ends_a_script():
    page = study_page("A <study>", POINTS, PUBLISHED)
    text = page.split('id="data">')[1].split("</script>")[0]
    told = json.loads(text)
    assert told["points"][3]["first_order"] is None
    assert [series["label"] for series in told["series"]] == list(SERIES)
    assert told["accuracy"][1]["densities"] == [0.1, 0.05, 0.02]
    assert told["accuracy"][1]["mean"][0] == pytest.approx(0.95)
    assert "<title>A &lt;study&gt;</title>" in page
    assert "&lt;b&gt;late&lt;/b&gt;" in page
    assert "lee2019snip" in page
    assert "tanaka2020synflow" not in page


def test_published_figures_of_series_that_are_not_shown_are_left_out():
    assert page_data(POINTS, [{**PUBLISHED[0], "label": "other"}])["published"] == []


def test_a_study_without_a_run_or_a_plotting_library_says_what_to_do(monkeypatch):
    with pytest.raises(InvalidInput, match="without a finished run"):
        study_page("A study", [])
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(InvalidInput, match=r"pip install 'pollard\[report\]'"):
        study_page("A study", POINTS)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: install Debian's package of that name to test the page in a browser")
    from playwright.sync_api import sync_playwright  # only where there is a browser

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "study.html"
    file.write_text(study_page("A study", POINTS, PUBLISHED), "utf-8")
    return f"file://{file}"


@pytest.fixture
def page(browser, address):
    """The page, offline; anything it says went wrong, or asks the network for, fails the test."""
    wrong = []
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 900})
    opened = context.new_page()
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    opened.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "blob:", "data:")) else None,
    )
    opened.goto(address)
    opened.wait_for_selector("#costs .main-svg")
    yield opened
    context.close()
    assert wrong == []


def traces(page, plot):
    return page.evaluate(f"document.getElementById('{plot}').data.map(trace => trace.name)")


def test_every_plot_is_drawn(page):
    for plot in ("accuracy", "leads", "layers", "aims", "curves", "costs"):
        assert page.locator(f"#{plot} .main-svg").count() > 0
        assert set(traces(page, plot)) & set(SERIES)
    assert "SNIP, published" in traces(page, "accuracy")
    assert page.locator("table").count() == 4


def test_pointing_at_a_mark_says_what_it_is(page):
    marker = page.locator("#accuracy .scatterlayer .points path").first.bounding_box()
    page.mouse.move(marker["x"] + marker["width"] / 2, marker["y"] + marker["height"] / 2)
    told = page.locator("#accuracy .hovertext").first
    told.wait_for()
    assert "kept" in told.text_content()
    assert "± " in told.text_content()
    assert "n = 3" in told.text_content()


def test_a_series_is_hidden_in_every_plot_and_comes_back(page):
    button = page.get_by_role("button", name="SNIP")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert all("SNIP" not in traces(page, plot) for plot in ("accuracy", "layers", "aims", "curves", "costs"))
    assert "SNIP, published" not in traces(page, "accuracy")
    button.click()
    assert all("SNIP" in traces(page, plot) for plot in ("accuracy", "layers", "aims", "curves", "costs"))


def test_series_are_set_beside_one_another_seed_by_seed_from_either_side(page):
    def table():
        return page.evaluate(
            "[...document.getElementById('differences').rows].map(row => [...row.cells].map(c => c.textContent))"
        )

    def chosen(against):
        page.select_option("#differences-against", against)
        head, *rows = table()
        assert head == ["", "above, in points", "95 %, Student", "95 %, bootstrap", "p", "n"]
        return {row[0]: row[1:] for row in rows}

    # At 10 % kept every accuracy is 0.96 less its seed's hundredth, as the dense network's is 0.978 less it.
    assert chosen("dense")["SNIP"] == ["-1.80", "-1.80 to -1.80", "-1.80 to -1.80", "none", "3"]
    assert chosen("SNIP")["dense"] == ["+1.80", "+1.80 to +1.80", "+1.80 to +1.80", "none", "3"]
    page.get_by_role("button", name="dense").click()
    assert "dense" not in chosen("SNIP")
    page.get_by_role("button", name="dense").click()


def test_a_lead_is_drawn_over_the_epochs_with_its_interval(page):
    page.select_option("#differences-against", "dense")
    found = page.evaluate("lead('<b>late</b>', 'SNIP', 0.05)")
    assert found == {"epochs": [0, 1, 2], "mean": pytest.approx([0, 0, 0]), "half": pytest.approx([0, 0, 0])}
    found = page.evaluate("lead('SNIP', 'dense', 0.05)")
    assert found["epochs"] == [1, 2]  # the dense network was never right after pruning
    assert found["mean"] == pytest.approx([-1.9, -3.8])
    assert set(traces(page, "leads")) == {"SNIP", "<b>late</b>"}
    # By hand: differences of 1, 2 and 3 points have a mean of 2 ± 2.48.
    seeds = [{"label": name, "density": 0.1, "seed": seed, "accuracy": None, "curve": [gain * seed / 100]}
             for name, gain in (("a", 1), ("b", 0)) for seed in (1, 2, 3)]  # fmt: skip
    found = page.evaluate("points => { data.points = points; return lead('a', 'b', 0.1); }", seeds)
    assert (found["mean"], found["half"]) == (pytest.approx([2]), pytest.approx([2.484], abs=1e-3))


def test_the_ends_of_an_interval_change_places_when_it_is_seen_from_the_other_side(page):
    seen = page.evaluate(
        "seenFrom('b', { label: 'b', against: 'a', difference: 2, student_low: -1, student_high: 5, bootstrap_low: null })"
    )
    assert (seen["label"], seen["difference"]) == ("a", -2)
    assert (seen["student_low"], seen["student_high"], seen["bootstrap_high"]) == (-5, 1, None)


def test_errors_can_be_shown_on_a_logarithmic_scale(page):
    page.select_option("#accuracy-choice", "error")
    axis = page.evaluate("document.getElementById('accuracy').layout.yaxis")
    assert (axis["title"]["text"], axis["type"]) == ("test error, %", "log")
    places = page.evaluate("document.getElementById('accuracy').data.map(trace => [trace.name, trace.y])")
    drawn = [y for name, y in places if name == "SNIP, published"]
    assert drawn == [[pytest.approx(3.0)]]
    assert all(value > 0 for _, y in places for value in y)


def test_costs_are_shown_against_what_they_buy(page):
    drawn = "document.getElementById('costs').data.map(({ name, x, y, text }) => ({ name, x, y, text }))"
    snip = next(series for series in page_data(POINTS)["accuracy"] if series["label"] == "SNIP")
    page.select_option("#costs-choice", "held_bytes")
    page.select_option("#costs-against", "accuracy")
    (found,) = [trace for trace in page.evaluate(drawn) if trace["name"] == "SNIP"]
    assert found["x"] == pytest.approx([4e5 * density + 1e5 for density in snip["densities"]])
    assert found["y"] == pytest.approx([100 * mean for mean in snip["mean"]])
    assert found["text"] == ["10 %", "5 %", "2 %"]
    axes = page.evaluate("document.getElementById('costs').layout")
    assert axes["yaxis"]["title"]["text"] == "test accuracy, %"
    assert axes["xaxis"].get("type") != "log"
    page.get_by_role("button", name="SNIP").click()
    assert "SNIP" not in traces(page, "costs")
    page.get_by_role("button", name="SNIP").click()
    page.select_option("#costs-against", "kept")
    assert page.evaluate("document.getElementById('costs').layout.xaxis.type") == "log"


def test_the_keyboard_reaches_the_series_and_the_choices(page):
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "dense"
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert "SNIP" not in traces(page, "accuracy")
    page.keyboard.press("Enter")
    assert "SNIP" in traces(page, "accuracy")
    page.locator("#aims-choice").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.getElementById('aims').layout.xaxis.title.text") == "accuracy right after pruning"
    page.locator("#layers-choice").focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.getElementById('layers').data[0].y[0]") == pytest.approx(2.5)


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    box = page.locator("#accuracy .main-svg").first.bounding_box()
    assert 250 < box["width"] <= 360


def test_a_label_is_text_and_never_markup(page):
    assert page.get_by_role("button", name="<b>late</b>").count() == 1
    assert page.locator("nav b").count() == 0


@pytest.mark.parametrize("label", ["<!--<script>", "</script><script>", "<!--", "]]>", "&lt;"])
def test_no_label_ends_or_swallows_the_data_of_a_page(label):
    told = _json({"label": label})
    assert "<" not in told
    assert json.loads(told) == {"label": label}
