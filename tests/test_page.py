"""The page of a leaderboard in a real browser: headless Chromium, driven by selenium."""

import json
import re
import shutil

import pytest
from example_board import ERROR, NASTY, SKIPPED, example

from mgen.leaderboards.page import page, safe_json, task_ids

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
RESULTS = example()
HEADS = "#main thead th"


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (CHROMIUM and DRIVER):
        pytest.skip("needs chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "board.html"
    path.write_text(page(RESULTS))
    return path


@pytest.fixture
def opened(browser, file):
    """Open the page, or another text as a page, in a window of some width; returns the browser."""

    def load(address: str = "", text: str = "", width: int = 1280, scheme: str = "light"):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        shown = file
        if text:
            shown = file.with_name("other.html")
            shown.write_text(text)
        browser.get("about:blank")  # an address that differs in its # alone would not load
        browser.get(f"file://{shown}{address}")
        return browser

    yield load
    assert [line["message"] for line in browser.get_log("browser")] == []


def js(browser, code: str, *given):
    return browser.execute_script(code, *given)


def rows(browser) -> list[str]:
    """Names of the entries that are shown, from top to bottom."""
    code = "return [...document.querySelectorAll('#main tbody tr')].filter(r => !r.hidden)"
    return js(browser, code + ".map(r => r.querySelector('th span').textContent)")


def heads(browser) -> list[str]:
    code = f"return [...document.querySelectorAll('{HEADS}')].filter(h => !h.hidden)"
    return js(browser, code + ".map(h => h.querySelector('button').textContent)")


def click(browser, selector: str) -> None:
    browser.find_element("css selector", selector).click()


def sort(browser, name: str) -> str:
    """Click a column's name; returns its aria-sort."""
    column = heads(browser).index(name) + 1
    click(browser, f"{HEADS}:nth-child({column}) button")
    return browser.find_element("css selector", f"{HEADS}:nth-child({column})").get_attribute(
        "aria-sort"
    )


def values(task: str) -> dict[str, float]:
    return {
        row["entry"]: row["value"]
        for row in RESULTS["summary"]
        if row["task"] == task and row["value"] is not None
    }


def test_a_click_sorts_by_number_and_another_turns_the_order(opened):
    browser = opened()
    assert rows(browser)[:3] == ["model_large_600m", "model_base_150m", "model_base_150m LoRA r=16"]
    own = values("mrl_50utr")  # lower is better, from 8 to 13: as text, 10 would come before 9
    assert min(own.values()) < 9 < 10 < max(own.values())
    upward = sorted(own, key=own.get)
    assert sort(browser, "mrl_50utr") == "ascending"
    assert rows(browser) == [*upward, NASTY]
    assert sort(browser, "mrl_50utr") == "descending"
    assert rows(browser) == [*reversed(upward), NASTY]
    own = values("promoter_300")
    assert sort(browser, "promoter_300") == "descending"  # higher is better
    assert rows(browser)[:9] == sorted(own, key=own.get, reverse=True)[:9]
    assert js(browser, f"return document.querySelectorAll('{HEADS}[aria-sort=none]').length") == 14


def test_averages_of_fewer_tasks_come_after_complete_ones(opened):
    browser = opened()
    by_entry = {row["entry"]: row for row in RESULTS["protocol"]["rows"]}
    whole = [name for name, row in by_entry.items() if not row["missing"]]
    for turn in (1, -1):
        sort(browser, "average")
        shown = rows(browser)
        averages = [turn * by_entry[name]["average"] for name in shown[: len(whole)]]
        assert set(shown[: len(whole)]) == set(whole)
        assert averages == sorted(averages, reverse=True)


def test_columns_sort_by_keyboard(opened):
    browser = opened()
    js(browser, f"document.querySelector('{HEADS} button').focus()")
    browser.switch_to.active_element.send_keys("\ue007")  # Enter
    assert rows(browser) == sorted(rows(browser), key=str.lower)
    assert browser.switch_to.active_element.tag_name == "button"


def test_filters_hide_rows_and_columns_and_change_no_rank(opened):
    browser = opened()
    ranks = "return [...document.querySelectorAll('#main tr:not([hidden]) td:nth-child(2)')]"
    before = js(browser, ranks + ".map(cell => cell.textContent)")
    browser.find_element("id", "name").send_keys("LORA")
    assert rows(browser) == ["model_base_150m LoRA r=16"]
    assert js(browser, ranks + ".map(cell => cell.textContent)") == [before[2]]
    said = browser.find_element("id", "shown").text
    assert said.startswith("1 of 12 entries and 7 of 7 tasks shown.") and "over all" in said
    click(browser, "#filter [type=reset]")
    click(browser, "#kinds [value=model]")
    click(browser, "#kinds [value=published]")
    assert rows(browser) == [
        "cnn $from^scratch", "onehot_linear", "kmer_ridge", "majority_or_mean"
    ]  # fmt: skip
    js(browser, "const g = document.querySelector('#group'); g.value = 'RNA';"
       "g.dispatchEvent(new Event('input', {bubbles: true}))")  # fmt: skip
    assert heads(browser)[-2:] == ["mrl_50utr", "rna_families"]
    assert "promoter_300" not in heads(browser)


def test_a_task_opens_with_its_plot_runs_and_comparisons(opened):
    browser = opened()
    task = browser.find_element("id", "task-enhancer_200")
    plot = task.find_element("css selector", ".plot")
    assert not plot.is_displayed()
    task.find_element("css selector", "summary").click()
    assert plot.is_displayed()
    assert plot.find_element("css selector", "circle").is_displayed()
    marks = "return arguments[0].querySelectorAll(arguments[1]).length"
    known = [row for row in RESULTS["summary"] if row["task"] == "enhancer_200"]
    with_interval = sum(row["low"] is not None for row in known)
    published = sum(row["value"] is not None and row["low"] is None for row in known)
    assert js(browser, marks, plot, ".row .bar") == with_interval == 9
    assert js(browser, marks, plot, ".row .published path") == published > 0
    assert "100 of 400 test sequences occur in train" in task.text
    assert ERROR.split("\n")[0] in task.text
    assert js(browser, marks, task, ".pairs tr") == 9  # a heading, and 8 others
    assert browser.current_url.endswith("#task-enhancer_200")


def test_a_comparison_says_who_is_better_whatever_is_chosen(opened):
    browser = opened("#task-mrl_50utr")  # lower is better
    pair = next(
        pair
        for pair in RESULTS["pairs"]
        if (pair["task"], pair["a"], pair["b"]) == ("mrl_50utr", "model_large_600m", "kmer_ridge")
    )
    assert pair["difference"] < 0 and pair["corrected"] < 0.05
    lines = "return [...document.querySelectorAll('#task-mrl_50utr .pairs tr')]"
    lines += ".map(line => [...line.children].map(cell => cell.textContent))"
    by_name = {line[0]: line for line in js(browser, lines)}
    ends = f"[{-pair['high']:+.3f}, {-pair['low']:+.3f}]"
    shown = by_name["kmer_ridge"]
    assert shown[1:3] == [f"{-pair['difference']:+.3f}", ends]
    assert shown[-1] == "worse"
    choose = "const s = document.querySelector('#task-mrl_50utr select');"
    choose += "s.value = [...s.options].find(o => o.text === 'kmer_ridge').value;"
    js(browser, choose + "s.dispatchEvent(new Event('change'))")
    turned = {line[0]: line for line in js(browser, lines)}["model_large_600m"]
    assert turned[1] == f"{pair['difference']:+.3f}" and turned[-1] == "better"


def test_an_address_opens_its_task_and_a_link_in_the_table_too(opened):
    browser = opened("#task-enhancer_200")
    is_open = "return [...document.querySelectorAll('details.of-task[open]')].map(t => t.id)"
    assert js(browser, is_open) == ["task-enhancer_200"]
    click(browser, 'a[href="#task-promoter_300"]')
    browser.implicitly_wait(1)
    browser.find_element("css selector", "#task-promoter_300[open]")


def test_it_is_dark_where_the_system_is_and_a_button_turns_it(opened):
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = js(opened(), colour)
    dark = js(browser := opened(scheme="dark"), colour)
    assert light == "rgb(255, 255, 255)" and dark != light
    click(browser, "#theme")
    assert js(browser, colour) == light
    click(browser, "#theme")
    assert js(browser, colour) == dark


def test_nothing_is_loaded(opened, file):
    browser = opened()
    assert js(browser, "return performance.getEntriesByType('resource').length") == 0
    assert not re.search(r"https?:|@import|url\(", file.read_text())


@pytest.mark.parametrize("address", ["", "#task-enhancer_200"])
def test_a_phone_scrolls_tables_and_not_the_page(opened, address):
    browser = opened(address, width=390)
    assert js(browser, "return document.documentElement.scrollWidth") <= 390
    left = "return document.querySelector('#main tbody th').getBoundingClientRect().left"
    before = js(browser, left)
    scrolled = "const w = document.querySelector('.main'); w.scrollLeft = 400; return w.scrollLeft"
    assert js(browser, scrolled) == 400
    assert js(browser, left) == before  # the column of names stays


def test_failed_and_missing_cells_are_shown_as_such(opened):
    browser = opened()
    failed = browser.find_elements("css selector", "#main td.failed")
    assert [cell.text for cell in failed] == ["failed"]
    title = failed[0].find_element("css selector", "a").get_attribute("title")
    assert title == "3 of 3 seeds failed: loss is nan at step 40"
    assert browser.find_element("css selector", "#main a.failed").text == "1 of 3 seeds failed"
    reasons = js(browser, "return [...document.querySelectorAll('td.missing a')].map(a => a.title)")
    assert reasons.count(next(iter(SKIPPED.values()))) == 1
    assert set(reasons) == {"no published figure", *SKIPPED.values()}
    assert "182 runs done, 4 failed; 1 of 63 cells" in browser.find_element("tag name", "dl").text


def test_scores_against_costs_draw_what_is_known_and_name_the_rest(opened):
    browser = opened()
    points = "return [...document.querySelectorAll('#chart g[tabindex]')]"
    points += ".map(p => p.getAttribute('aria-label').split('\\n')[0])"
    whole = {row["entry"] for row in RESULTS["protocol"]["rows"] if not row["missing"]}
    run = {cell["entry"] for cell in RESULTS["cells"]}
    assert set(js(browser, points)) == (whole & run) - {NASTY}  # which did not run on all tasks
    left = browser.find_element("id", "undrawn").text
    assert "cnn $from^scratch (average over 5 of 6 tasks)" in left
    assert f"{NASTY} (no training seconds on every task)" in left
    js(browser, "document.querySelector('#chart g[tabindex]').focus()")
    assert "training seconds" in browser.find_element("id", "tip").text
    choose = (
        "const [s, a] = [document.querySelector('#score'), document.querySelector('#against')];"
    )
    choose += "s.value = 1; a.value = 1; a.dispatchEvent(new Event('input', {bubbles: true}))"
    js(browser, choose)  # the first task against parameters: a published figure has some as well
    with_parameters = {entry["name"] for entry in RESULTS["entries"] if entry["parameters"]}
    assert set(js(browser, points)) == with_parameters & set(values("promoter_300"))
    assert "Author et al. 2023, table 2" in js(browser, points)


def test_names_and_texts_are_text_whatever_they_hold(opened):
    browser = opened()
    assert NASTY in rows(browser)
    assert browser.title == RESULTS["title"]
    assert js(browser, "return document.images.length") == 0
    evil = "</script></style></title>\"'><i class=evil onclick=alert(1)>&lt;"
    spoiled = json.loads(json.dumps(RESULTS), object_hook=lambda d: _spoil(d, evil))
    browser = opened(text=page(spoiled))
    assert js(browser, "return document.querySelectorAll('.evil').length") == 0
    assert len(rows(browser)) == 12 and all(evil in name for name in rows(browser))
    for summary in browser.find_elements("css selector", ".of-task > summary"):
        js(browser, "arguments[0].click()", summary)
    assert js(browser, "return document.querySelectorAll('.evil').length") == 0
    assert js(browser, "return document.querySelectorAll('.pairs tr').length") > 50


def _spoil(fields: dict, evil: str) -> dict:
    """Every text of a board but its own words, with something to be taken for HTML."""
    own = ("kind", "level")
    spoiled = {}
    for key, value in fields.items():
        if isinstance(value, str) and value and key not in own:
            value += evil
        elif isinstance(value, list):
            value = [v + evil if isinstance(v, str) else v for v in value]
        elif key == "groups" and isinstance(value, dict):
            value = {name + evil: v for name, v in value.items()}
        spoiled[key] = value
    return spoiled


def test_a_board_of_which_nothing_ran_has_a_page(opened):
    empty = example(seeds=0)
    for row in empty["summary"]:
        row |= {"value": None, "low": None, "high": None, "best": False, "tied": False}
    empty |= {"cells": [], "pairs": []}
    for row in empty["protocol"]["rows"]:
        row |= {"average": None, "groups": {}, "missing": [t["name"] for t in empty["tasks"]]}
    empty["tasks"][0]["absent"] = "no file data/promoters.csv"
    browser = opened("#task-promoter_300", text=page(empty))
    assert (
        "nothing ran: no file data/promoters.csv" in browser.find_element("tag name", "main").text
    )


def test_addresses_of_tasks_are_unique_and_plain():
    names = ["a b", "a-b", "a-b-2", "<>", "α/β"]
    assert list(task_ids(names).values()) == [
        "task-a-b", "task-a-b-2", "task-a-b-2-3", "task-4", "task-α-β"
    ]  # fmt: skip


def test_json_in_a_page_cannot_end_its_script():
    text = safe_json({"</script>": "<!--"})
    assert "<" not in text and json.loads(text) == {"</script>": "<!--"}
