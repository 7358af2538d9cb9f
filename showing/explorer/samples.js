"use strict";
/* A sample as a tile: its picture or a labelled square, where the feature fires in it, and its caption. */
(() => {
  const { el } = explorer;
  let without = null; // rows that have no picture

  function hasPicture(row) {
    without = without || new Set(explorer.meta.no_picture || []);
    return !without.has(row);
  }

  const file = (row) => `thumbs/${explorer.padded(Math.floor(row / 1000), 3)}/${explorer.padded(row, 6)}.jpg`;

  let paint = null;

  /* After the next frame: pictures are shown first, then the files of captions are read, of which there may be many. */
  function painted() {
    paint = paint || new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    return paint.then(() => {
      paint = null;
    });
  }

  /* The [caption, id] of a row, when its file has come; the id only where it is another number than the row. */
  async function caption(row) {
    const size = explorer.meta.caption_chunk;
    await painted();
    return explorer.load(`captions/${Math.floor(row / size)}`).then((all) => [all[row % size] || ""].flat(), () => [""]);
  }

  function blank(row, words) {
    return el("div", { class: "picture blank", role: "img", "aria-label": `sample ${row}: ${words}` }, words);
  }

  /* The picture, lazily, with the heat map over it where there is one. */
  function picture(row, spot) {
    const image = el("img", { src: file(row), alt: `sample ${row}`, loading: "lazy", decoding: "async" });
    const frame = el("div", { class: "picture" }, image);
    image.addEventListener("error", () => frame.replaceWith(blank(row, "picture missing")));
    if (spot) image.addEventListener("load", () => frame.append(explorer.heat(spot, image)));
    return frame;
  }

  const CUT = 400; // characters of a caption that a tile shows at most
  const cut = (text) => (text.length > CUT ? `${text.slice(0, CUT)}…` : text);

  /* What a tile shows of a row; nothing where no row has a picture: then the captions are what there is. */
  function shownOf(row, spot) {
    if (!explorer.meta.thumbs) return null;
    return hasPicture(row) ? picture(row, spot) : blank(row, "no picture");
  }

  /* A tile of a row. `head`: words above the caption, as the activation; `spot`: {grid, crop} of a heat map. */
  explorer.tile = (row, head, spot) => {
    const text = el("span", { class: "caption", dir: "auto" });
    const shown = shownOf(row, spot);
    const numbers = el("span", { class: "faint block" }, head);
    const words = el("figcaption", null, numbers, text);
    caption(row).then(([found, id]) => {
      if (id) numbers.append(`, id\u00a0${id}`);
      text.textContent = cut(found);
      const image = shown && shown.querySelector("img");
      if (image && found) image.alt = cut(found);
    });
    return el("figure", { class: "tile" }, shown, words);
  };

  /* Tiles in a row or a grid. `samples` holds [row, activation] or rows alone. */
  explorer.tiles = (samples, kind, spotOf = () => null) => {
    const tiles = samples.map((sample) => {
      const [row, activation] = Array.isArray(sample) ? sample : [sample];
      const head = activation === undefined ? `row\u00a0${row}` : `${explorer.activation(activation)}\u2002row\u00a0${row}`;
      return el("li", null, explorer.tile(row, head, spotOf(row)));
    });
    return el("ul", { class: `tiles ${kind}` }, tiles);
  };
})();
