"""How fast an explorer opens, searches, sorts and shows a feature in headless Chromium, from disk and with no network.

`uv run benchmarks/explorer_browser.py`: a synthetic folder of three runs of 8,192 features over 118,287 samples; or
`FOLDER`, one that `show.py --html` has written. Each figure is the middle of several turns, from the click to the
end of the frame that shows it; of what is sorted, searched or opened in a turn, the slowest. A feature's captions come
after its pictures.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from plumbing.commandline import Parser, script

TARGETS = {"first table": 1.5, "sort": 0.4, "search": 0.4, "open a feature": 0.3}  # seconds
ARGUMENTS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
SETTLE = """
window.until = async (told) => { do await new Promise(requestAnimationFrame); while (!told());
                                 await new Promise((painted) => setTimeout(painted)); };
window.timed = async (act, told) => { const start = performance.now(); act(); await until(told);
                                      return (performance.now() - start) / 1000; };
"""
FIRST = "() => until(() => document.querySelector('.features tbody tr')).then(() => performance.now() / 1000)"
SORT = """key => { const cell = document.querySelector(`th[data-key='${key}']`), was = cell.getAttribute('aria-sort');
  return timed(() => cell.querySelector('button').click(), () => cell.getAttribute('aria-sort') !== was); }"""
SEARCH = """text => { const field = document.querySelector('input[type=search]');
  return timed(() => { field.value = text; field.dispatchEvent(new Event('input')); },
               () => new URLSearchParams(location.hash.split('?')[1]).get('q') === text); }"""
OPEN = """link => timed(() => { location.hash = link; },
  () => document.querySelector('.feature .tiles img, .feature .blank')
        && document.querySelector('.where').textContent.includes(`feature ${link.split('/').at(-1)}`))"""


def measure(folder: Path, turns: int = 5) -> dict[str, float]:
    """The middle seconds of each of `TARGETS` in `folder/index.html`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        taken = [measured(browser, (folder / "index.html").as_uri()) for _ in range(turns)]
        browser.close()
    return {name: statistics.median(turn[name] for turn in taken) for name in TARGETS}


def measured(browser, address: str) -> dict[str, float]:
    """One turn, in a window of its own: nothing has been loaded before."""
    page = browser.new_page()
    page.add_init_script(SETTLE)
    page.goto(address)
    first = page.evaluate(FIRST)
    page.wait_for_load_state("networkidle")
    keys = ["name", "count", "mean", page.locator("th[aria-sort]").get_attribute("data-key")]
    name = page.locator("a.open").first.inner_text()
    links = [link.get_attribute("href") for link in page.locator("a.open").all()]
    seconds = {
        "first table": first,
        "sort": max(page.evaluate(SORT, key) for key in keys),
        "search": max(page.evaluate(SEARCH, text) for text in (name[:1], name, "7")),
        "open a feature": max(page.evaluate(OPEN, link) for link in links[::12]),
    }
    page.close()
    return seconds


@script
def main(argv=None) -> dict[str, float]:
    """Print each figure beside its target; returns the seconds."""
    parser = Parser(__doc__, __file__)
    parser.add_argument(
        "folder", nargs="?", type=Path, help="an explorer; by default a synthetic one is written"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or synthetic(Path(temporary))
        seconds = measure(folder)
    for name, took in seconds.items():
        print(
            f"{name:16} {took:6.2f} s  target {TARGETS[name]} s: {'met' if took <= TARGETS[name] else 'not met'}"
        )
    return seconds


def synthetic(folder: Path) -> Path:
    """Three runs of 8,192 live features over as many samples as COCO has; two thousand of them have pictures."""
    from tests.explorer_folder import write_folder

    write_folder(folder, features=8192, samples=118_287, pictures=2_000)
    return folder


if __name__ == "__main__":
    main()
