"use strict";
/* The table of a layer's features, fifty rows a page, with its search and filters. Its state is in the address. */
(() => {
  const { el, known } = explorer;
  const ROWS = 50;
  let built = null; // the table on the page: its state, the places that it shows, and the elements that change

  const small = (text) => el("span", { class: "faint block" }, text);
  const number = (...content) => el("td", { class: "number" }, content);
  const pages = () => Math.max(1, Math.ceil(built.shown.length / ROWS));
  const sortNow = () => built.state.sort || explorer.defaultSort(built.table);

  /* Show another state in place of this one: typing and sorting leave no trail of pages behind. */
  function change(changes) {
    built.state = { ...built.state, page: "", ...changes };
    history.replaceState(null, "", explorer.listLink(built.state));
    draw();
  }

  function headings(table) {
    const own = [["name", "Name"], ["feature", "Number"], ["count", "Active on"], ["mean", "Mean activation"]];
    const others = table.others.map(({ slug, name }) => [`in:${slug}`, `In ${name}`]);
    const groups = [["delta", "Delta"], ["status", "Status"]].filter(([key]) => table.columns[key]);
    return [...own, ...groups, ...others];
  }

  function sortBy(key) {
    const { rising } = explorer.sortable(built.table).get(key);
    const [first, second] = rising ? [key, `-${key}`] : [`-${key}`, key];
    change({ sort: sortNow() === first ? second : first });
  }

  function heading([key, text]) {
    const button = el("button", { type: "button", click: () => sortBy(key) }, el("span", { dir: "auto" }, text));
    return el("th", { scope: "col", "data-key": key }, button);
  }

  /* A partner in another run: the held-out correlation, what chance gives this feature, and its name. */
  function partnerCell({ columns }, index, { slug }) {
    const [partner, rho] = [columns.partner[slug][index], columns.held_out[slug][index]];
    const floor = columns.floor?.[slug]?.[index];
    const layer = columns.partner_layer[slug];
    const name = explorer.nameOf(slug, layer, partner) || `no word (${partner})`;
    const link = el("a", { href: explorer.featureLink(slug, layer, partner), dir: "auto" }, name);
    const scores = [
      known(rho) ? el("strong", null, explorer.r(rho)) : el("span", { class: "faint" }, "too rare"),
      known(rho) && known(floor) ? el("span", { class: "faint" }, ` chance\u00a0${explorer.r(floor)}`) : null,
    ];
    const named = partner >= 0 ? el("span", { class: "block" }, link) : null;
    return el("td", { class: "partner" }, el("span", { class: "scores" }, scores), named);
  }

  /* How a feature came by its name, in few words. */
  function origin({ columns }, index) {
    if (!columns.name[index]) return "";
    const by = columns.by[index];
    const r = `r\u00a0${explorer.r(columns.score[index])}`;
    if (by === "captions") return `captions, ${r}`;
    return by === "partner" ? `its partner, ${r}` : `by ${by}`;
  }

  function starred() {
    if (built.state.star) draw();
    else built.export.hidden = !explorer.notes().length;
  }

  function nameCell(table, index) {
    const feature = table.columns.feature[index];
    const address = explorer.featureLink(table.run.slug, table.layer, feature);
    const name = table.columns.name[index] || "no word";
    const flags = [explorer.isDense(table, index) && "dense", explorer.isRare(table, index) && "rare"];
    return el(
      "th",
      { scope: "row" },
      explorer.star(table, feature, starred),
      el("a", { href: address, class: "open", dir: "auto", "data-feature": feature }, name),
      flags.filter(Boolean).map((flag) => el("span", { class: "flag" }, flag)),
      small(origin(table, index)),
    );
  }

  function row(table, index) {
    const { columns } = table;
    const count = columns.count[index];
    return el(
      "tr",
      null,
      nameCell(table, index),
      number(String(columns.feature[index])),
      number(explorer.percent(count / explorer.meta.n_samples), small(explorer.whole(count))),
      number(explorer.activation(columns.mean[index])),
      columns.delta ? number(explorer.activation(columns.delta[index])) : null,
      columns.status ? el("td", { class: "status", dir: "auto" }, columns.status[index] || "–") : null,
      table.others.map((other) => partnerCell(table, index, other)),
    );
  }

  /* "412 features; 37 dense ones hidden", and a button that shows these. */
  function drawCount({ shown, hidden, table }) {
    const left = Object.entries(hidden).map(([kind, n]) => (n ? `; ${explorer.count(n, `${kind} one`)} hidden` : ""));
    const none = table.n ? "" : ": none of this layer is active on any sample";
    built.count.textContent = explorer.count(shown.length, "feature") + none + left.join("");
    built.showDense.hidden = !hidden.dense;
    built.export.hidden = !explorer.notes().length;
  }

  function drawPager(page) {
    const turn = (link, to) => {
      const there = to >= 1 && to <= pages();
      if (there) link.setAttribute("href", explorer.listLink({ ...built.state, page: to > 1 ? String(to) : "" }));
      else link.removeAttribute("href");
      link.setAttribute("aria-disabled", !there);
    };
    built.page.textContent = `page ${page} of ${explorer.whole(pages())}`;
    turn(built.previous, page - 1);
    turn(built.next, page + 1);
  }

  function drawHeadings() {
    for (const cell of built.headings) {
      const { key } = cell.dataset;
      if (sortNow() === key) cell.setAttribute("aria-sort", "ascending");
      else if (sortNow() === `-${key}`) cell.setAttribute("aria-sort", "descending");
      else cell.removeAttribute("aria-sort");
    }
  }

  function draw() {
    const { table, state } = built;
    Object.assign(built, explorer.view(table, state));
    const page = Math.min(Math.max(1, Number.parseInt(state.page, 10) || 1), pages());
    const places = built.shown.slice((page - 1) * ROWS, page * ROWS);
    built.body.replaceChildren(...places.map((index) => row(table, index)));
    drawHeadings();
    drawCount(built);
    drawPager(page);
  }

  function legend(table) {
    const { dense, rare, min_active: least } = explorer.meta;
    const parts = [
      table.others.length &&
        "In another run: the correlation with the best partner, held out (the partner is chosen on one half of " +
          "the samples, the correlation is of the other half), what chance gives such a feature, and the partner's " +
          `name. Too rare: active on fewer than ${explorer.count(least, "sample")}.`,
      table.columns.delta &&
        "Delta is scaled by the summed activation: compare its sign and order, not its size; read the status first.",
      `Dense: active on more than ${explorer.percent(dense)} of the samples. Rare: on fewer than ${rare}.`,
      "Activations of different features have different scales.",
      "Keys: / search, j and k down and up, Enter open, Esc back.",
    ];
    return el("p", { class: "legend" }, parts.filter(Boolean).join(" "));
  }

  /* The section of a table, made once; later states change its rows and fields. */
  function build(table, state) {
    built = { table, state, shown: [], hidden: {} };
    const title = `Features of ${table.run.name}, ${table.layer}`;
    const button = (text, click) => el("button", { type: "button", class: "plain", click }, text);
    Object.assign(built, {
      filters: explorer.filters(table, change),
      headings: headings(table).map(heading),
      body: el("tbody"),
      count: el("p", { class: "count", role: "status", "aria-live": "polite" }),
      showDense: button("show", () => change({ dense: "1" })),
      export: button("save stars and notes as CSV", explorer.downloadNotes),
      previous: el("a", { role: "link" }, "‹ previous"),
      page: el("span"),
      next: el("a", { role: "link" }, "next ›"),
    });
    const head = el("thead", null, el("tr", null, built.headings));
    built.root = el(
      "section",
      { class: "list" },
      el("h2", { dir: "auto" }, title),
      built.filters.root,
      el("div", { class: "counts" }, built.count, built.showDense, built.export),
      explorer.scroller("Features", el("table", { class: "features" }, el("caption", null, title), head, built.body)),
      el("nav", { class: "pager", "aria-label": "Pages" }, built.previous, built.page, built.next),
      legend(table),
    );
  }

  /* Draw again with the partners' names, as soon as their tables have come. */
  async function fetchNames(table) {
    if (table.named) return;
    table.named = true;
    await explorer.partnerTables(table);
    explorer.renewSearch(table);
    if (built.table === table) draw();
  }

  /* The section for a table in a state. */
  explorer.list = (table, state) => {
    if (!built || built.table !== table) build(table, state);
    built.state = state;
    built.filters.fill(state);
    draw();
    fetchNames(table);
    return built.root;
  };

  /* The address of a layer's list as it was last seen, and the features in its order; all of the layer's where
     `feature` is not among them. */
  explorer.lastList = (table, feature) => {
    const last = built && built.table === table ? built : null;
    const link = explorer.listLink(last ? last.state : { run: table.run.slug, layer: table.layer });
    const numbers = ({ shown }) => shown.map((index) => table.columns.feature[index]);
    const listed = numbers(last || explorer.view(table, {}));
    return { link, features: listed.includes(feature) ? listed : numbers(explorer.view(table, { dense: "1" })) };
  };

  explorer.focusSearch = () => built.filters.search.focus();

  /* Esc: empty the search; where it is empty, leave the field. */
  explorer.leaveSearch = () => {
    const { search } = built.filters;
    if (document.activeElement !== search || !search.value) document.activeElement?.blur();
    else {
      search.value = "";
      change({ q: "" });
    }
  };

  /* Focus the link of the next or previous row; from elsewhere, of the first. */
  explorer.stepRow = (step) => {
    const links = [...built.body.querySelectorAll("a.open")];
    const now = links.indexOf(document.activeElement?.closest("tr")?.querySelector("a.open"));
    links[now < 0 ? 0 : Math.min(links.length - 1, Math.max(0, now + step))]?.focus();
  };

  /* Focus the row of a feature, where the page shows it. */
  explorer.focusRow = (feature) => {
    built.body.querySelector(`a.open[data-feature="${Number(feature)}"]`)?.focus({ preventScroll: true });
  };
})();
