"""The explorer's page in headless Chromium, opened from disk with no network: what it shows, and what it must not do."""

import re
import shutil

import pytest
from explorer_folder import caption, counts, name, number, write_folder

from showing.page import SCRIPTS, SOURCE, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = """<img src=x onerror="window.fired=1"></script><script>window.fired=1</script>'"><svg onload=window.fired=1>"""
FEATURE = "#/clip/layer11/31"  # "blue square", at place 10
browser_tests = pytest.mark.browser


def test_the_page_escapes_its_title(tmp_path):
    write_page(tmp_path, "</title><script>fired = 1</script>")
    text = (tmp_path / "index.html").read_text()
    assert "&lt;/title&gt;&lt;script&gt;" in text
    assert re.findall(r"<script[^>]*>", text) == [
        *(f'<script defer src="app/{name}">' for name in SCRIPTS),
        '<script defer src="data/meta.js">',
    ]


def test_every_script_is_loaded_and_none_parses_text_as_html():
    scripts = {file.name: file.read_text() for file in SOURCE.glob("*.js")}
    assert scripts.keys() == set(SCRIPTS)
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|fetch\("
    )
    assert [name for name, text in scripts.items() if forbidden.search(text)] == []


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install it to run the tests in a browser")
    driver = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield browser
    browser.close()
    driver.stop()


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("explorer"))


@pytest.fixture
def visit(chromium, explorer):
    """Open an address of the explorer in a window; at the end nothing was complained of and nothing left the folder."""
    contexts, said, asked = [], [], []

    def opened(address="#/", file=explorer, **window):
        contexts.append(chromium.new_context(**{"viewport": {"width": 1400, "height": 900}} | window))
        page = contexts[-1].new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append((request.url, file.parent.as_uri())))
        page.goto(file.as_uri() + address)
        return page

    opened.said = said
    yield opened
    for context in contexts:
        context.close()
    inside = [url for url, folder in asked if url.startswith((f"{folder}/", "data:,", "blob:"))]
    assert said == []
    assert len(asked) > 10
    assert len(inside) == len(asked)


def names(page):
    """The names of the rows, in their order; the page draws within the same event, or as soon as data come."""
    return page.locator("a.open").all_inner_texts()


def said(page):
    return page.locator("[role=status].count").inner_text()


@browser_tests
def test_the_first_page_shows_runs_scores_and_features_without_the_dense(visit):
    page = visit()
    page.get_by_text("198 features; 2 dense ones hidden").wait_for()
    assert page.locator("a.open").count() == 50
    assert page.locator(".runs tbody tr").count() == 3
    cells = page.locator(".matrix tbody tr").first.locator("td")
    assert re.sub(r"\s+", " ", cells.nth(1).inner_text()) == ".43 .41 to .45 bare .52, floor .04"
    row = page.locator(".features tbody tr").first
    assert re.split(r"\s*[\n\t]\s*", row.inner_text())[1:] == [
        "yellow disc", "captions, r\u00a0.44", "10", "7.8 %", "47", "10.5", "−8.50", "present, absent",
        ".89 chance\u00a0.05", "purple disc", ".44 chance\u00a0.05", "purple disc",
    ]  # fmt: skip
    page.get_by_role("button", name="show", exact=True).click()
    assert said(page) == "200 features"
    page.get_by_role("link", name="next").click()
    page.get_by_text("page 2 of 4").wait_for()
    page.go_back()
    page.get_by_text("page 1 of 4").wait_for()


@browser_tests
def test_search_finds_names_numbers_and_names_of_partners_and_filters_add_to_it(visit):
    page = visit()
    search = page.get_by_label("Search names and numbers")
    search.fill("green sq")
    expected = {name(place) for place in range(200) if "green square" in f"{name(place)} {name(place + 1)}"}
    page.wait_for_function(f"document.querySelectorAll('a.open').length === {len(expected)}")
    assert set(names(page)) == expected
    search.fill("31")
    assert sorted(names(page)) == ["blue square", "no word"]  # 31 itself, and the one whose partner it is
    search.fill("")
    page.get_by_label("Active on, from %").fill("8")
    page.get_by_label("Status").select_option("in vit")
    active = counts(200, 600)
    kept = [place for place in range(200) if 48 <= active[place] <= 60 and place % 3 == 1]
    assert said(page) == f"{len(kept)} features; 1 dense one hidden"
    page.reload()
    page.get_by_text(f"{len(kept)} features").wait_for()
    assert page.get_by_label("Status").input_value() == "in vit"


@browser_tests
def test_columns_sort_by_mouse_and_by_keyboard_with_the_rare_last(visit):
    page = visit("#/?dense=1")
    heading = page.locator("th[data-key=count]")
    heading.get_by_role("button").click()
    shown = page.locator(".features td:nth-child(3) .block").all_inner_texts()
    assert [int(text) for text in shown] == sorted(counts(200, 600), reverse=True)[:50]
    assert heading.get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert names(page)[0] == name(2)
    for key, first in (("Space", name(0)), ("Space", name(199) or "no word")):
        page.locator("th[data-key='in:vit'] button").focus()
        page.keyboard.press(key)
        assert names(page)[0] == first
        page.goto(page.url.replace("#/?", "#/?page=4&"))
        page.get_by_text("page 4 of 4").wait_for()
        assert page.locator(".features tbody tr").last.inner_text().count("too rare") == 2


@browser_tests
def test_a_feature_shows_its_samples_bands_words_and_relatives(visit):
    page = visit(FEATURE)
    page.get_by_role("heading", name="blue square", level=1).wait_for()
    top = page.locator(".top img")
    assert top.count() == 24
    page.wait_for_function("document.querySelector('.top img').alt.includes('ground')")
    assert [image.get_attribute("alt") for image in top.all()[:2]] == [caption(50), caption(51)]
    heads = page.locator(".top .tile .faint").all_inner_texts()
    assert ["id" in head for head in heads[:2]] == [True, False]
    assert "row\u00a050, id\u00a051" in heads[0]
    assert page.locator(".band h3").all_inner_texts() == [
        "silent", "lowest fifth", "second", "third", "fourth", "highest fifth",
    ]  # fmt: skip
    assert page.locator(".band .tile").count() == 24
    histogram = page.get_by_role("img", name="Histogram of activations above zero")
    assert histogram.locator("rect").count() == 20
    assert page.get_by_text("in 14 of its top 40").is_visible()
    assert page.locator(".related a").all_inner_texts()[:2] == ["yellow square", "purple square"]
    assert page.locator(".in-run").first.locator("h4").all_inner_texts() == [
        "both fire", "only clip fires", "only vit fires",
    ]  # fmt: skip
    assert page.locator(".in-run").first.locator(".strip .tile").count() == 18
    heat = "document.querySelector('canvas.heat').getContext('2d').getImageData(7, 7, 1, 1).data[3]"
    page.wait_for_selector("canvas.heat")
    assert page.evaluate(heat) > 150
    page.get_by_label("show where it fires").uncheck()
    assert not page.locator("canvas.heat").first.is_visible()


@browser_tests
def test_a_partner_is_followed_and_the_back_button_returns(visit):
    page = visit("#/?q=square")
    page.locator("a.open", has_text="blue square").first.click()
    page.get_by_role("heading", name="blue square", level=1).wait_for()
    page.locator(".in-run").nth(1).get_by_role("link").first.click()
    page.get_by_role("heading", name="yellow square", level=1).wait_for()
    assert page.url.endswith("#/bert/layer11/34")
    page.go_back()
    page.get_by_role("heading", name="blue square", level=1).wait_for()
    page.go_back()
    page.locator("a.open").first.wait_for()
    assert page.get_by_label("Search names and numbers").input_value() == "square"
    assert page.evaluate("document.activeElement.textContent") == "blue square"


@browser_tests
def test_keys_search_step_open_and_go_up(visit):
    page = visit()
    page.locator("a.open").first.wait_for()
    page.keyboard.press("/")
    page.keyboard.type("disc")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("j")
    first, second, third = names(page)[:3]
    assert page.evaluate("document.activeElement.textContent") == second
    page.keyboard.press("Enter")
    page.get_by_role("heading", name=second, level=1).wait_for()
    page.keyboard.press("j")
    page.get_by_role("heading", name=third, level=1).wait_for()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("k")
    page.get_by_role("heading", name=first, level=1).wait_for()
    page.evaluate("location.hash = '#/clip/layer11/1'")  # dense, so that the list has it not
    page.get_by_role("heading", name=name(0), level=1).wait_for()
    page.keyboard.press("j")
    page.get_by_role("heading", name=name(1), level=1).wait_for()
    page.keyboard.press("Escape")
    page.locator("a.open").first.wait_for()
    assert page.get_by_label("Search names and numbers").input_value() == "disc"


@browser_tests
def test_an_unknown_address_says_what_there_is(visit):
    page = visit("#/nobody/layer11/1")
    for address, text in (
        ("", "There is no run nobody here; there are clip, vit and bert."),
        ("#/clip/layer3/1", "clip has no layer layer3 here; it has layer11."),
        ("#/clip/layer11/9999", "There is no feature 9999; clip, layer11 has features 0 to 799, of which 200 are active on a sample: try 1."),
        ("#/clip/layer11/2", "Feature 2 is active on no sample; clip, layer11 has features 0 to 799"),
        ("#/%E0/layer11/2", "There is no run %E0 here"),
        ("#/?run=nobody", "There is no run nobody here"),
    ):  # fmt: skip
        if address:
            page.evaluate("address => { location.hash = address }", address)
        page.locator("[role=alert]").filter(has_text=text).wait_for()
    page.get_by_role("link", name="to the first page").click()
    page.locator("a.open").first.wait_for()


@browser_tests
def test_what_is_missing_is_said(visit, tmp_path):
    file = write_folder(tmp_path, features=70, lost=[299])
    (tmp_path / "data" / "clip-layer11" / "f001.js").unlink()
    page = visit(f"#/clip/layer11/{number(2)}", file)
    assert page.get_by_text("Active on fewer than 16 samples").is_visible()
    assert page.locator(".in-run").first.get_by_text("too rare to tell").is_visible()
    blanks = page.locator(".blank")
    assert {"no picture"} == set(blanks.all_inner_texts())
    page.goto(
        f"{file.as_uri()}#/clip/layer11/{number(56)}"
    )  # among its rows is the picture whose file is gone
    page.locator("[aria-label='sample 299: picture missing']").scroll_into_view_if_needed()
    page.goto(f"{file.as_uri()}#/clip/layer11/{number(65)}")
    page.get_by_text(
        "data/clip-layer11/f001.js is missing or damaged: copy the folder again, whole"
    ).wait_for()
    assert [text for text in visit.said if "ERR_FILE_NOT_FOUND" not in text and "f001.js" not in text] == []
    visit.said.clear()


@browser_tests
def test_stars_and_notes_are_kept_and_exported(visit):
    page = visit(FEATURE)
    page.get_by_role("button", name="star of feature 31").click()
    page.get_by_label("Note").fill('=clean, "blue"')
    page.reload()
    page.get_by_role("button", name="star of feature 31", pressed=True).wait_for()
    assert page.get_by_label("Note").input_value() == '=clean, "blue"'
    page.keyboard.press("Escape")
    page.get_by_label("starred only").check()
    assert names(page) == ["blue square"]
    with page.expect_download() as download:
        page.get_by_role("button", name="save stars and notes as CSV").click()
    assert download.value.path().read_text(encoding="utf-8-sig").splitlines() == [
        '"run","layer","feature","name","star","note"',
        '"clip","layer11","31","blue square","1","\'=clean, ""blue"""',
    ]


@browser_tests
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible_and_fit_a_narrow_screen(visit, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    rules = None if scheme == "light" else {"type": "rule", "values": ["color-contrast"]}
    options = {"resultTypes": ["violations"], "preload": False}  # it may fetch nothing from disk
    options |= {"runOnly": rules} if rules else {}
    page = visit(color_scheme=scheme)
    for address, ready in (
        ("#/", "a.open"),
        (FEATURE, ".top img[alt*=ground]"),
        ("#/no/no/1", "[role=alert]"),
    ):
        page.evaluate("address => { location.hash = address }", address)
        page.locator(ready).first.wait_for()
        found = axe.run(page, options=options)
        assert found.violations_count == 0, found.generate_report()
        page.set_viewport_size({"width": 390, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.set_viewport_size({"width": 1400, "height": 900})


def without_policy(text):
    return re.sub(r"<meta http-equiv[^>]*>", "", text)


@browser_tests
@pytest.mark.parametrize("policy", [True, False])
def test_texts_that_try_to_inject_script_do_nothing(visit, tmp_path, policy):
    file = write_folder(tmp_path, features=70, spice=lambda text: f"{text} {EVIL}")
    if not policy:
        file.write_text(without_policy(file.read_text()))
    assert ("Content-Security-Policy" in file.read_text()) == policy
    page = visit("#/", file)
    page.locator("a.open").first.wait_for()
    assert names(page)[0] == f"yellow disc {EVIL}"
    page.get_by_label("Status").select_option(f"in vit {EVIL}")
    for address, ready in ((FEATURE, ".top img[alt*=ground]"), ("#/vit/layer11/34", ".top"), (f"#/{EVIL}/a/1", "[role=alert]")):  # fmt: skip
        page.evaluate("address => { location.hash = address }", address)
        page.locator(ready).first.wait_for()
        page.evaluate(
            "document.querySelectorAll('[aria-expanded=false]').forEach((button) => button.click())"
        )
    page.wait_for_timeout(100)
    assert page.evaluate("window.fired") is None
    assert page.locator("script:not([src]), img[src='x']").count() == 0


@browser_tests
def test_the_probe_fires_on_a_page_that_is_bad(chromium, tmp_path):
    (tmp_path / "bad.html").write_text(f"<p></p><div title='{EVIL}</div>")
    page = chromium.new_page()
    page.goto((tmp_path / "bad.html").as_uri())
    page.wait_for_function("window.fired === 1", timeout=5000)
    page.close()
