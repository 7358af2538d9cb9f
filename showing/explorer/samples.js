"use strict";
/* A sample as a tile: its picture or a labelled square, where the feature fires in it, and its caption. */
(() => {
  const { el } = explorer;
  let without = null; // rows that have no picture

  function hasPicture(row) {
    const { thumbs, no_picture: rows } = explorer.meta;
    without = without || new Set(rows || []);
    return thumbs && !without.has(row);
  }

  const file = (row) => `thumbs/${explorer.padded(Math.floor(row / 1000), 3)}/${explorer.padded(row, 6)}.jpg`;

  /* The caption of a row, when its file has come; "" where it does not. */
  function caption(row) {
    const size = explorer.meta.caption_chunk;
    return explorer.load(`captions/${Math.floor(row / size)}`).then((all) => all[row % size] || "", () => "");
  }

  const blank = (row, words) => el("div", { class: "picture blank", role: "img", "aria-label": `sample ${row}: ${words}` }, words);

  /* The picture, lazily, with the heat map over it where there is one. */
  function picture(row, spot) {
    const image = el("img", { src: file(row), alt: `sample ${row}`, loading: "lazy", decoding: "async" });
    const frame = el("div", { class: "picture" }, image);
    image.addEventListener("error", () => frame.replaceWith(blank(row, "picture missing")));
    if (spot) image.addEventListener("load", () => frame.append(explorer.heat(spot, image)));
    return frame;
  }

  /* A tile of a row. `head`: words above the caption, as the activation; `spot`: {grid, side, crop} of a heat map. */
  explorer.tile = (row, head, spot) => {
    const text = el("span", { class: "caption", dir: "auto" });
    const shown = hasPicture(row) ? picture(row, spot) : blank(row, explorer.meta.thumbs ? "no picture" : "caption alone");
    const tile = el("figure", { class: "tile" }, shown, el("figcaption", null, el("span", { class: "faint block" }, head), text));
    caption(row).then((words) => {
      text.textContent = words;
      const image = shown.querySelector("img");
      if (image && words) image.alt = words;
    });
    return tile;
  };

  /* Tiles in a row or a grid. `samples` holds [row, activation] or rows alone. */
  explorer.tiles = (samples, kind, spotOf = () => null) => {
    const tiles = samples.map((sample) => {
      const [row, activation] = Array.isArray(sample) ? sample : [sample];
      const head = activation === undefined ? `row ${row}` : `${explorer.activation(activation)} · row ${row}`;
      return el("li", null, explorer.tile(row, head, spotOf(row)));
    });
    return el("ul", { class: `tiles ${kind}` }, tiles);
  };
})();
