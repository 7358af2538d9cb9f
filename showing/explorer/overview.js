"use strict";
/* The head of the first page: the runs with their SAEs' quality, and how much of each run the others have. */
(() => {
  const { el, known } = explorer;

  /* A table that scrolls by itself where the window is too narrow, so that the page never does. */
  explorer.scroller = (label, table) =>
    el("div", { class: "scroller", role: "region", "aria-label": label, tabindex: 0 }, table);

  const column = (name) => el("th", { scope: "col", dir: "auto" }, name);
  const small = (text) => el("span", { class: "faint block" }, text);

  /* A run's name, its encoder and what was recorded of it, beside all of its layers. */
  function runCell(run) {
    const { model, checkpoint } = run.encoder;
    const encoder = [...new Set([model, checkpoint])].filter(known).join(", ");
    const k = known(run.k) ? `k\u00a0=\u00a0${run.k}` : null;
    const recorded = [run.modality, run.token, run.activation, k].filter(known).join(" · ");
    const attributes = { scope: "rowgroup", rowspan: run.layers.length, dir: "auto" };
    return el("th", attributes, run.name, small(encoder), small(recorded));
  }

  function layerRow(run, layer, first) {
    const address = explorer.listLink({ run: run.slug, layer: layer.name });
    const numbers = [
      explorer.whole(layer.d_sae),
      explorer.whole(layer.live),
      explorer.r(layer.fvu, 3),
      explorer.r(layer.fvu_recorded, 3),
      known(layer.l0) ? layer.l0.toFixed(1) : "–",
      explorer.percent(layer.dead_fraction),
      explorer.percent(layer.dense_fraction),
    ];
    return el(
      "tr",
      null,
      first ? runCell(run) : null,
      el("td", null, el("a", { href: address }, layer.name)),
      numbers.map((text) => el("td", { class: "number" }, text)),
    );
  }

  function runs() {
    const columns = ["Run", "Layer", "Features", "Live", "FVU", "FVU rec.", "L0", "Dead", "Dense"];
    const bodies = explorer.meta.runs.map((run) =>
      el("tbody", null, run.layers.map((layer, place) => layerRow(run, layer, place === 0))),
    );
    const head = el("thead", null, el("tr", null, columns.map(column)));
    const legend =
      "Live: active on at least one of these samples. FVU: fraction of variance unexplained, 0 is perfect " +
      "and 1 is the mean; rec.: of the recorded tokens alone. L0: active features a token. Dead and dense: " +
      "of the tokens held out in training, features that fire on none, and on more than a tenth.";
    return [
      explorer.scroller("Runs", el("table", { class: "runs" }, head, bodies)),
      el("p", { class: "legend" }, legend),
    ];
  }

  /* What a cell of the matrix says below its score: the interval, and the bare score with its floor. */
  function below(at) {
    const bare = `bare ${explorer.r(at("value"))}`;
    return [
      known(at("held_out")) ? null : "not held out",
      known(at("low")) && known(at("high")) ? `${explorer.r(at("low"))} to ${explorer.r(at("high"))}` : null,
      known(at("floor")) ? `${bare}, floor ${explorer.r(at("floor"))}` : null,
    ].filter(known);
  }

  /* A cell of the matrix: held out where there is that, else the bare score; the darker, the higher. */
  function score(row, place) {
    if (row === place) return el("td", { class: "score own" }, "1");
    const at = (what) => explorer.meta.matrix[what]?.[row]?.[place];
    const value = known(at("held_out")) ? at("held_out") : at("value");
    if (!known(value)) return el("td", { class: "score" }, "–");
    const cell = el("td", { class: "score" }, el("strong", null, explorer.r(value)), below(at).map(small));
    cell.style.setProperty("--share", `${Math.round(45 * Math.min(1, Math.max(0, value)))}%`);
    return cell;
  }

  function matrix() {
    const names = explorer.meta.runs.map((run) => run.name);
    const rows = names.map((name, row) =>
      el("tr", null, el("th", { scope: "row", dir: "auto" }, name), names.map((_, place) => score(row, place))),
    );
    const head = el("thead", null, el("tr", null, el("td", null, "of ↓ in →"), names.map(column)));
    const legend =
      "wMPPC, held out: how much of the row's run the column's run has; last layers. Below it the 95 % " +
      "interval over samples, the score that is not held out, and its floor, which chance alone reaches. " +
      "Held out, chance gives 0.";
    return [
      explorer.scroller("Scores", el("table", { class: "matrix" }, head, el("tbody", null, rows))),
      el("p", { class: "legend" }, legend),
    ];
  }

  function groups() {
    const found = explorer.meta.groups;
    if (!found) return null;
    const counts = Object.entries(found.counts || {}).map(([words, n]) => `${explorer.whole(n)} ${words}`);
    const [G, H] = [found.min_group, found.max_group].map((names) => names.join(", "));
    const text =
      `Comparative Sharedness of ${found.source}: features in all of G (${G}) and in none of H (${H}). ` +
      `${counts.join("; ")}.`;
    return el("p", { class: "legend", dir: "auto" }, text);
  }

  function section(title, ...content) {
    const open = window.matchMedia("(min-width: 60em)").matches;
    return el("details", { class: "part", open }, el("summary", null, el("h2", null, title)), content);
  }

  let built = null;

  /* The runs, and the matrix where several were compared; folded on a narrow window, to have the features first. */
  explorer.overview = () => {
    if (built) return built;
    const compared = explorer.meta.runs.length > 1 && explorer.meta.matrix;
    const scores = compared ? section("How much of one run another has", matrix(), groups()) : null;
    built = el("div", { class: "overview" }, section("Runs", runs()), scores);
    return built;
  };

  /* How the folder was made, at the foot of the page. */
  explorer.colophon = () => {
    const { command, made, versions, seed, dataset, fingerprint, n_samples: all } = explorer.meta;
    const used = Object.entries(versions).map(([name, version]) => `${name} ${version}`);
    const data = `Data set ${dataset}: ${explorer.count(all, "sample")}, fingerprint ${fingerprint.slice(0, 12)}.`;
    return [
      el("p", { dir: "auto" }, data, ` Silent samples are drawn at random with seed ${seed}.`),
      el("p", { dir: "auto" }, "Made ", made.slice(0, 10), " by ", el("code", null, command.join(" ")), "."),
      el("p", { dir: "auto" }, `${used.join(", ")}.`),
    ];
  };
})();
