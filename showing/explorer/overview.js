"use strict";
/* The head of the first page: the runs with their SAEs' quality, and how much of each run the others have. */
(() => {
  const { el } = explorer;

  /* A table that scrolls by itself where the window is too narrow, so that the page never does. */
  explorer.scroller = (label, table) => el("div", { class: "scroller", role: "region", "aria-label": label, tabindex: 0 }, table);

  const head = (...names) => el("tr", null, names.map((name) => el("th", { scope: "col" }, name)));

  function layerRow(run, layer, first) {
    const { model, checkpoint } = run.encoder;
    const what = [checkpoint && checkpoint !== model ? `${model}, ${checkpoint}` : model, `${run.modality} encoder`];
    const about = `${what.join(" · ")} · ${run.token} · ${run.activation}, k = ${run.k}`;
    const name = el("th", { scope: "rowgroup", rowspan: run.layers.length, dir: "auto" }, run.name, el("span", { class: "faint block" }, about));
    const link = el("a", { href: explorer.listLink({ run: run.slug, layer: layer.name }) }, layer.name);
    const cells = [
      explorer.whole(layer.d_sae),
      explorer.whole(layer.live),
      explorer.r(layer.fvu, 3),
      explorer.r(layer.fvu_recorded, 3),
      layer.l0 === null ? "–" : layer.l0.toFixed(1),
      explorer.percent(layer.dead_fraction),
      explorer.percent(layer.dense_fraction),
    ];
    return el("tr", null, first ? name : null, el("td", null, link), cells.map((text) => el("td", { class: "number" }, text)));
  }

  function runs() {
    const columns = ["Run", "Layer", "Features", "Live", "FVU", "FVU, recorded token", "L0", "Dead", "Dense"];
    const bodies = explorer.meta.runs.map((run) => el("tbody", null, run.layers.map((layer, place) => layerRow(run, layer, place === 0))));
    const legend =
      "Live: active on at least one of these samples. FVU: fraction of variance unexplained, 0 is perfect and 1 is the mean. " +
      "L0: active features a token. Dead and dense: of all tokens held out in training, features that fire on none, and on more than a tenth.";
    return [
      explorer.scroller("Runs", el("table", { class: "runs" }, el("thead", null, head(...columns)), bodies)),
      el("p", { class: "legend" }, legend),
    ];
  }

  const told = (value) => value !== null && value !== undefined;

  /* A cell of the matrix: held out where there is that, else the bare score; below it the floor and the interval. */
  function score(row, column) {
    if (row === column) return el("td", { class: "score own" }, "1");
    const at = (what) => (explorer.meta.matrix[what] || [])[row]?.[column];
    const value = told(at("held_out")) ? at("held_out") : at("value");
    if (!told(value)) return el("td", { class: "score" }, "–");
    const lines = [
      told(at("held_out")) ? null : "not held out",
      told(at("low")) ? `${explorer.r(at("low"))} to ${explorer.r(at("high"))}` : null,
      told(at("floor")) ? `bare ${explorer.r(at("value"))}, floor ${explorer.r(at("floor"))}` : null,
    ];
    const cell = el("td", { class: "score" }, el("strong", null, explorer.r(value)), lines.filter(told).map((line) => el("span", { class: "faint block" }, line)));
    cell.style.setProperty("--share", `${Math.round(45 * Math.min(1, Math.max(0, value)))}%`);
    return cell;
  }

  function matrix() {
    const { runs } = explorer.meta;
    const rows = runs.map((run, row) =>
      el("tr", null, el("th", { scope: "row", dir: "auto" }, run.name), runs.map((_, column) => score(row, column))),
    );
    const names = runs.map((run) => el("th", { scope: "col", dir: "auto" }, run.name));
    const legend =
      "wMPPC, held out: how much of the row's run the column's run has; last layers. Below it the 95 % interval over samples, " +
      "the score that is not held out, and its floor, which chance alone reaches. Held out, chance gives 0.";
    return [
      explorer.scroller("Scores", el("table", { class: "matrix" }, el("thead", null, el("tr", null, el("td", null, "of ↓ in →"), names)), el("tbody", null, rows))),
      el("p", { class: "legend" }, legend),
    ];
  }

  function groups() {
    const found = explorer.meta.groups;
    if (!found) return null;
    const words = Object.entries(found.counts || {}).map(([status, number]) => `${explorer.whole(number)} ${status}`);
    const text = `Comparative Sharedness: features of ${found.source} that ${found.min_group.join(", ")} have and ${found.max_group.join(", ")} have not. ${words.join("; ")}.`;
    return el("p", { class: "legend", dir: "auto" }, text);
  }

  const wide = () => window.matchMedia("(min-width: 60em)").matches;
  const section = (title, ...content) => el("details", { class: "part", open: wide() }, el("summary", null, el("h2", null, title)), content);

  /* The runs, and the matrix where several were compared; folded on a narrow window, where the features come first. */
  let built = null;
  explorer.overview = () => {
    const compared = explorer.meta.runs.length > 1 && explorer.meta.matrix;
    built = built || el("div", { class: "overview" }, section("Runs", runs()), compared ? section("How much of one run another has", matrix(), groups()) : null);
    return built;
  };

  /* How the folder was made, at the foot of the page. */
  explorer.colophon = () => {
    const { command, made, versions, seed, fingerprint } = explorer.meta;
    const used = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
    return [
      el("p", { dir: "auto" }, "Made ", made.slice(0, 10), " by ", el("code", null, command.join(" ")), "."),
      el("p", null, `Samples at random are drawn with seed ${seed}. Data ${fingerprint.slice(0, 12)}. ${used.join(", ")}.`),
    ];
  };
})();
