"""The explorer's page in headless Chromium, opened from disk with no network: what it shows, and what it must not do."""

import re

from showing.page import SCRIPTS, SOURCE, write_page


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
