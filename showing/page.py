"""The explorer's page: `index.html` and the scripts and style sheet beside it, which show the folder's data."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from plumbing import files

SOURCE = Path(__file__).parent / "explorer"
SCRIPTS = (
    "core.js",
    "notes.js",
    "columns.js",
    "overview.js",
    "plots.js",
    "samples.js",
    "filters.js",
    "table.js",
    "partners.js",
    "feature.js",
    "router.js",
)
STYLE = "explorer.css"


def write_page(folder: Path, title: str):
    """Write `folder/index.html` and `folder/app/`; the data beside them are not touched. `title` may be any text."""
    template = Environment(
        loader=FileSystemLoader(SOURCE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    files.make_folder(folder / "app")
    for name in (*SCRIPTS, STYLE):
        files.write_text(folder / "app" / name, (SOURCE / name).read_text(encoding="utf-8"))
    text = template.get_template("index.html.j2").render(title=title, scripts=SCRIPTS, style=STYLE)
    files.write_text(folder / "index.html", text)
