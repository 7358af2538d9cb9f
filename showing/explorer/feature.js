"use strict";
/* The page of one feature: what it responds to, how strongly, and which features of its layer are like it. */
(() => {
  const { el, known } = explorer;
  const FIFTHS = ["lowest fifth", "second", "third", "fourth", "highest fifth"];
  let heatShown = true;

  const part = (title, ...content) => el("section", null, el("h2", null, title), content);
  const faint = (text) => el("p", { class: "faint" }, text);

  /* The name of a feature as a link to its page. */
  explorer.nameLink = (slug, layer, feature, text = (name) => name) => {
    const name = text(explorer.nameOf(slug, layer, feature) || "no word");
    return el("a", { href: explorer.featureLink(slug, layer, feature), dir: "auto" }, name);
  };

  /* Who gave the name, in words. */
  function origin({ columns }, index) {
    if (!columns.name[index]) return "no word follows it better than chance";
    const score = explorer.r(columns.score[index]);
    if (columns.by[index] === "captions") return `named by the captions, r ${score}`;
    if (columns.by[index] === "partner") return `named after its best partner in a text run, r ${score} held out`;
    return `named by ${columns.by[index]}`;
  }

  function facts(table, index) {
    const { columns } = table;
    const { n_samples: all } = explorer.meta;
    const count = columns.count[index];
    const status = columns.status?.[index];
    const words = [
      `active on ${explorer.whole(count)} of ${explorer.count(all, "sample")} (${explorer.percent(count / all)})`,
      `mean activation ${explorer.activation(columns.mean[index])}, highest ${explorer.activation(columns.max[index])}`,
      columns.delta && `Delta ${explorer.activation(columns.delta[index])}`,
      status && `status: ${status}`,
      explorer.isDense(table, index) && "dense",
      explorer.isRare(table, index) && "rare",
    ];
    return el("p", { dir: "auto" }, words.filter(Boolean).join(" · "));
  }

  /* Links to the features before and after this one in the order of the list, and up to the list. */
  function neighbours(table, feature) {
    const { run, layer } = table;
    const { link, features } = explorer.lastList(table, feature);
    const at = features.indexOf(feature);
    const to = (place, key, text) => {
      if (features[place] === undefined) return el("span", { class: "faint" }, text);
      return el("a", { href: explorer.featureLink(run.slug, layer, features[place]), "data-key": key }, text);
    };
    return el(
      "nav",
      { class: "pager", "aria-label": "Features" },
      to(at - 1, "previous", "‹ previous"),
      el("a", { href: link, "data-key": "up", dir: "auto" }, "all features"),
      to(at + 1, "next", "next ›"),
    );
  }

  function head(table, index) {
    const feature = table.columns.feature[index];
    const name = table.columns.name[index] || "no word";
    const place = `${table.run.name}, ${table.layer}, feature ${feature}`;
    return el(
      "header",
      { class: "feature-head" },
      neighbours(table, feature),
      el("div", { class: "title" }, explorer.star(table, feature), el("h1", { tabindex: -1, dir: "auto" }, name)),
      el("p", { class: "where", dir: "auto" }, place, el("span", { class: "faint" }, ` ${origin(table, index)}`)),
      facts(table, index),
    );
  }

  /* The heat map of a row, where the explorer was written with them. */
  explorer.spots = (found, run) => (row) =>
    known(found.where?.[row]) ? { grid: found.where[row], crop: run.crop } : null;

  function heatSwitch(found, page) {
    const { where } = explorer.meta;
    if (!where || !Object.keys(found.where || {}).length) return null;
    const box = el("input", { type: "checkbox", id: "heat" });
    const set = () => {
      heatShown = box.checked;
      page.classList.toggle("no-heat", !heatShown);
    };
    box.checked = heatShown;
    box.addEventListener("change", set);
    set();
    const label = el("label", { for: "heat" }, "show where it fires");
    return el("p", { class: "switch" }, box, label, el("span", { class: "faint", dir: "auto" }, where.words));
  }

  function highest(table, found, page) {
    const samples = found.rank.map((row, place) => [row, found.act[place]]);
    const tiles = explorer.tiles(samples, "top", explorer.spots(found, table.run));
    return part("Highest samples", heatSwitch(found, page), tiles);
  }

  /* From silent to high: features that look clean at the top need not be so below. */
  function bands({ run }, found) {
    const column = (title, samples) => {
      const tiles = samples.length ? explorer.tiles(samples, "pairs", explorer.spots(found, run)) : faint("none");
      return el("div", { class: "band" }, el("h3", null, title), tiles);
    };
    const few = `Active on fewer than ${explorer.count(explorer.meta.rare, "sample")}: all of them are above.`;
    const fifths = found.bands.map((samples, place) => column(FIFTHS[place], samples));
    const shown = fifths.length ? fifths : faint(few);
    return part("From silent to high", el("div", { class: "bands" }, column("silent", found.silent), shown));
  }

  function smallTable(caption, columns, rows) {
    const head = el("tr", null, columns.map((text) => el("th", { scope: "col" }, text)));
    const cells = ([first, ...rest]) => [
      el("th", { scope: "row", dir: "auto" }, first),
      rest.map((text) => el("td", { class: "number" }, text)),
    ];
    const body = rows.map((row) => el("tr", null, cells(row)));
    return el("table", { class: "small" }, el("caption", null, caption), el("thead", null, head), el("tbody", null, body));
  }

  function words({ columns }, index, found) {
    const floor = `Shuffled captions reach r ${explorer.r(found.floor)}.`;
    if (!found.words.length) return part("Words", faint(`No word. ${floor}`));
    const top = known(found.n_top) ? found.n_top : Math.min(100, columns.count[index]);
    const rows = found.words.map(([word, r, inTop, share]) => [
      word,
      explorer.r(r),
      `in ${inTop} of its top ${top}`,
      `in ${explorer.percent(share)}`,
    ]);
    return part("Words", smallTable("Words", ["Word", "r", "Its captions", "All captions"], rows), faint(floor));
  }

  function objects(found) {
    if (!found.objects?.length) return null;
    const rows = found.objects.map(([name, r]) => [name, explorer.r(r)]);
    return part("Objects", smallTable("Objects", ["Annotated object", "r"], rows));
  }

  function like({ run, layer }, found) {
    const list = (title, unit, pairs) => {
      const link = (feature) => explorer.nameLink(run.slug, layer, feature);
      const rows = pairs.map(([feature, value]) => [link(feature), String(feature), explorer.r(value)]);
      return el("div", null, el("h3", null, title), smallTable(title, ["Feature", "Number", unit], rows));
    };
    const lists = [
      found.related.length ? list("Firing together", "r", found.related) : null,
      found.alike.length ? list("Alike in the decoder", "cosine", found.alike) : null,
    ].filter(known);
    return part("Related in this layer", lists.length ? el("div", { class: "related" }, lists) : faint("None."));
  }

  /* The page of the feature at a place of its table; `found` is its FEATURE. */
  explorer.featurePage = (table, index, found) => {
    const page = el("article", { class: `feature ${table.run.modality}` });
    const note = explorer.noteField(table, table.columns.feature[index]);
    const activations = part("Activations", explorer.histogram(found.hist));
    const aside = el("div", { class: "aside" }, activations, words(table, index, found), objects(found), note);
    const others = table.others.map((other) => explorer.partners(table, index, other, found));
    page.append(
      head(table, index),
      el("div", { class: "columns" }, el("div", null, highest(table, found, page)), aside),
      bands(table, found),
      ...(others.length ? [part("In other runs", others)] : []),
      like(table, found),
    );
    return page;
  };

  /* The FEATURE at a place of a table. */
  explorer.featureData = async ({ run, layer }, index) => {
    const { chunk } = explorer.meta;
    const all = await explorer.load(`features/${run.slug}/${layer}/${Math.floor(index / chunk)}`);
    return all[index % chunk];
  };
})();
