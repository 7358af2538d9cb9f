"use strict";
/* The table of a layer's features: search, order, filters, fifty rows a page. Its state is in the address. */
(() => {
  const { el } = explorer;
  const ROWS = 50;
  let built = null; // the table on the page, with the elements that change

  const stateWith = (change) => ({ ...built.state, ...change });
  const pages = () => Math.max(1, Math.ceil(built.shown.length / ROWS));

  /* Show another state in place of this one: typing and sorting leave no trail of pages behind. */
  function change(changes) {
    built.state = stateWith({ page: "", ...changes });
    history.replaceState(null, "", explorer.listLink(built.state));
    draw();
  }

  function headings(table) {
    const found = [
      ["name", "Name"],
      ["feature", "Number"],
      ["count", "Active on"],
      ["mean", "Mean activation"],
      ...table.others.map(({ slug, name }) => [`in:${slug}`, `In ${name}`]),
    ];
    if (table.columns.delta) found.push(["delta", "Delta"]);
    if (table.columns.status) found.push(["status", "Status"]);
    return found;
  }

  function sortBy(key) {
    const now = built.state.sort || explorer.defaultSort(built.table);
    const rising = Boolean(explorer.sortable(built.table)[key].rising);
    const [first, second] = rising ? [key, `-${key}`] : [`-${key}`, key];
    change({ sort: now === first ? second : first });
  }

  function heading(key, text) {
    const button = el("button", { type: "button", click: () => sortBy(key) }, el("span", { dir: "auto" }, text));
    return el("th", { scope: "col", "data-key": key }, button);
  }

  /* A partner in another run: the held-out correlation, what chance gives this feature, and its name. */
  function partnerCell(table, index, { slug }) {
    const { columns } = table;
    const partner = columns.partner[slug][index];
    const rho = columns.held_out[slug][index];
    if (partner < 0) return el("td", { class: "partner faint" }, rho === null ? "too rare" : "none");
    const layer = columns.partner_layer[slug];
    const floor = columns.floor && columns.floor[slug] ? columns.floor[slug][index] : null;
    const link = el("a", { href: explorer.featureLink(slug, layer, partner), dir: "auto" }, explorer.nameOf(slug, layer, partner) || `no word (${partner})`);
    const value = el("strong", null, rho === null ? "too rare" : explorer.r(rho));
    const chance = floor === null || floor === undefined ? "" : el("span", { class: "faint" }, ` chance ${explorer.r(floor)}`);
    return el("td", { class: "partner" }, value, chance, el("span", { class: "block" }, link));
  }

  function nameCell(table, index) {
    const { columns } = table;
    const feature = columns.feature[index];
    const name = columns.name[index];
    const link = el("a", { href: explorer.featureLink(table.run.slug, table.layer, feature), class: "open", dir: "auto", "data-feature": feature }, name || "no word");
    const score = columns.score[index];
    const by = columns.by[index];
    const words = { captions: `r ${explorer.r(score)}`, partner: `from its partner, ${explorer.r(score)}` }[by] || `by ${by}`;
    const flags = [explorer.isDense(table, index) ? "dense" : "", explorer.isRare(table, index) ? "rare" : ""].filter(Boolean);
    return el(
      "th",
      { scope: "row" },
      explorer.star(table, feature, () => built.state.star && draw()),
      el("span", { class: "named" }, link, name ? el("span", { class: "faint" }, ` ${words}`) : "", flags.map((flag) => el("span", { class: "flag" }, flag))),
    );
  }

  function row(table, index) {
    const { columns } = table;
    return el(
      "tr",
      null,
      nameCell(table, index),
      el("td", { class: "number" }, String(columns.feature[index])),
      el("td", { class: "number" }, explorer.percent(columns.count[index] / explorer.meta.n_samples), el("span", { class: "faint block" }, explorer.whole(columns.count[index]))),
      el("td", { class: "number" }, explorer.activation(columns.mean[index])),
      table.others.map((other) => partnerCell(table, index, other)),
      columns.delta ? el("td", { class: "number" }, explorer.activation(columns.delta[index])) : null,
      columns.status ? el("td", { class: "status", dir: "auto" }, columns.status[index] || "–") : null,
    );
  }

  /* "412 features; 37 dense ones hidden", and a button that shows these. */
  function counted() {
    const { shown, hidden } = built;
    const one = (number, words) => (number ? `; ${explorer.count(number, `${words} one`)} hidden` : "");
    built.count.textContent = explorer.count(shown.length, "feature") + one(hidden.dense, "dense") + one(hidden.rare, "rare");
    built.showDense.hidden = !hidden.dense;
  }

  function pager(page) {
    const at = (number) => explorer.listLink(stateWith({ page: number > 1 ? String(number) : "" }));
    built.page.textContent = `page ${page} of ${explorer.whole(pages())}`;
    for (const [link, number] of [[built.previous, page - 1], [built.next, page + 1]]) {
      const there = number >= 1 && number <= pages();
      if (there) link.setAttribute("href", at(number));
      else link.removeAttribute("href");
      link.toggleAttribute("aria-disabled", !there);
    }
  }

  function draw() {
    const { table, state } = built;
    Object.assign(built, explorer.view(table, state));
    const page = Math.min(Math.max(1, Number.parseInt(state.page, 10) || 1), pages());
    const sort = state.sort || explorer.defaultSort(table);
    for (const cell of built.headings) {
      const key = cell.dataset.key;
      const direction = { [key]: "ascending", [`-${key}`]: "descending" }[sort];
      if (direction) cell.setAttribute("aria-sort", direction);
      else cell.removeAttribute("aria-sort");
    }
    built.body.replaceChildren(...built.shown.slice((page - 1) * ROWS, page * ROWS).map((index) => row(table, index)));
    built.export.hidden = !explorer.notes().length;
    counted();
    pager(page);
  }

  /* A labelled field of the filter bar, which changes the state as it is used. */
  function field(label, name, attributes, ...options) {
    const id = `filter-${name}`;
    const tag = options.length ? "select" : "input";
    const input = el(tag, { id, ...attributes, input: () => change({ [name]: input.type === "checkbox" ? (input.checked ? "1" : "") : input.value }) }, options);
    built.fields[name] = input;
    return el("div", { class: `field ${attributes.type || ""}` }, el("label", { for: id }, label), input);
  }

  const option = (value, text) => el("option", { value }, text);

  function layerField(table) {
    const all = explorer.meta.runs.flatMap((run) => run.layers.map((layer) => [run, layer.name]));
    const options = all.map(([run, layer], place) => option(place, `${run.name}, ${layer}`));
    const go = () => {
      const [run, layer] = all[Number(select.value)];
      location.hash = explorer.listLink({ run: run.slug, layer });
    };
    const select = el("select", { id: "filter-layer", change: go }, options);
    select.value = all.findIndex(([run, layer]) => run === table.run && layer === table.layer);
    return el("div", { class: "field" }, el("label", { for: "filter-layer" }, "Run and layer"), select);
  }

  function filters(table) {
    const { status } = table.columns;
    const statuses = status ? [...new Set(status.filter(Boolean))].sort() : [];
    const percent = { type: "number", min: 0, max: 100, step: "any", inputmode: "decimal" };
    return el(
      "div",
      { class: "filters", role: "search" },
      layerField(table),
      field("Search names and numbers", "q", { type: "search", autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/" }),
      field("Active on at least, %", "min", percent),
      field("at most, %", "max", percent),
      statuses.length ? field("Status", "status", {}, option("", "any"), statuses.map((text) => option(text, text))) : null,
      field("show dense", "dense", { type: "checkbox" }),
      field("hide rare", "rare", { type: "checkbox" }),
      field("starred only", "star", { type: "checkbox" }),
    );
  }

  function legend(table) {
    const { dense, rare, min_active: least } = explorer.meta;
    const parts = [
      table.others.length ? "In another run: the correlation with the best partner, held out (the partner is chosen on half of the samples, the correlation is of the other half), what chance gives such a feature, and the partner's name." : "",
      table.others.length ? `Too rare: active on fewer than ${explorer.count(least, "sample")}.` : "",
      table.columns.delta ? "Delta is scaled by the summed activation: compare its sign and order, not its size, and read the status first." : "",
      `Dense: active on more than ${explorer.percent(dense)} of the samples. Rare: on fewer than ${explorer.whole(rare)}.`,
      "Activations of different features have different scales.",
    ];
    const keys = "Keys: / search, j and k down and up, Enter open, Esc back.";
    return el("p", { class: "legend" }, `${parts.filter(Boolean).join(" ")} ${keys}`);
  }

  /* The table of a layer, once; later states only change its rows. */
  function build(table, state) {
    built = { table, state, fields: {}, shown: [], hidden: {} };
    built.headings = headings(table).map(([key, text]) => heading(key, text));
    built.body = el("tbody");
    built.count = el("p", { class: "count", role: "status", "aria-live": "polite" });
    built.showDense = el("button", { type: "button", class: "plain", click: () => change({ dense: "1" }) }, "show");
    built.export = el("button", { type: "button", class: "plain", click: explorer.downloadNotes }, "save stars and notes as CSV");
    [built.previous, built.next] = ["‹ previous", "next ›"].map((text) => el("a", { role: "link" }, text));
    built.page = el("span");
    const grid = el("table", { class: "features" }, el("caption", null, `Features of ${table.run.name}, ${table.layer}`), el("thead", null, el("tr", null, built.headings)), built.body);
    const foot = el("nav", { class: "pager", "aria-label": "Pages" }, built.previous, built.page, built.next);
    built.root = el(
      "section",
      { class: "list", id: "features" },
      el("h2", { tabindex: -1 }, `Features of ${table.run.name}, ${table.layer}`),
      filters(table),
      el("div", { class: "counts" }, built.count, built.showDense, built.export),
      explorer.scroller("Features", grid),
      foot,
      legend(table),
    );
  }

  function fillFields() {
    for (const [name, input] of Object.entries(built.fields)) {
      if (input.type === "checkbox") input.checked = Boolean(built.state[name]);
      else if (input.value !== (built.state[name] || "")) input.value = built.state[name] || "";
    }
  }

  async function fetchNames(table) {
    if (table.named) return;
    table.named = true;
    await explorer.partnerTables(table);
    explorer.renewSearch(table);
    if (built.table === table) draw();
  }

  /* The section for a table in a state: the rows at once, the partners' names as soon as their tables have come. */
  explorer.list = (table, state) => {
    if (!built || built.table !== table) build(table, state);
    built.state = state;
    fillFields();
    draw();
    fetchNames(table);
    return built.root;
  };

  /* The address of the list as it was last seen, and the features in its order, for the pages of single features. */
  explorer.lastList = (table) =>
    built && built.table === table
      ? { link: explorer.listLink(built.state), features: built.shown.map((index) => table.columns.feature[index]) }
      : { link: explorer.listLink({ run: table.run.slug, layer: table.layer }), features: explorer.view(table, {}).shown.map((index) => table.columns.feature[index]) };

  explorer.focusSearch = () => built.fields.q.focus();

  /* Esc: empty the search; if it is empty, leave the field. */
  explorer.leaveSearch = () => {
    const search = built.fields.q;
    if (document.activeElement !== search || !search.value) document.activeElement?.blur();
    else {
      search.value = "";
      change({ q: "" });
    }
  };

  /* Move to the next or previous row's link; from elsewhere to the first. Returns the link. */
  explorer.stepRow = (step) => {
    const links = [...built.body.querySelectorAll("a.open")];
    const now = links.indexOf(document.activeElement?.closest("tr")?.querySelector("a.open"));
    const link = links[now < 0 ? 0 : Math.min(links.length - 1, Math.max(0, now + step))];
    if (link) link.focus();
  };

  explorer.focusRow = (feature) => {
    const link = built.body.querySelector(`a.open[data-feature="${Number(feature)}"]`);
    if (link) link.focus({ preventScroll: true });
  };
})();
