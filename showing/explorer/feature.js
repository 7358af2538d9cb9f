"use strict";
/* The page of one feature: what it responds to, how strongly, and what is like it in this run and in others. */
(() => {
  const { el } = explorer;
  let heatShown = true;

  const part = (title, ...content) => el("section", null, el("h2", null, title), content);
  const faint = (text) => el("p", { class: "faint" }, text);
  const ordinal = (table, index) => table.columns.feature[index];

  /* Who gave the name, in words. */
  function origin(table, index) {
    const { columns } = table;
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
    const words = [
      `active on ${explorer.whole(count)} of ${explorer.count(all, "sample")} (${explorer.percent(count / all)})`,
      `mean activation ${explorer.activation(columns.mean[index])}, highest ${explorer.activation(columns.max[index])}`,
      columns.delta ? `Delta ${explorer.activation(columns.delta[index])}` : "",
      columns.status ? columns.status[index] : "",
      explorer.isDense(table, index) ? "dense" : "",
      explorer.isRare(table, index) ? "rare" : "",
    ];
    return el("p", { dir: "auto" }, words.filter(Boolean).join(" · "));
  }

  /* Links to the features before and after this one in the order of the list, and up to the list. */
  function neighbours(table, feature) {
    const { link, features } = explorer.lastList(table);
    const at = features.indexOf(feature);
    const to = (place, text, key) =>
      at >= 0 && features[place] !== undefined
        ? el("a", { href: explorer.featureLink(table.run.slug, table.layer, features[place]), "data-key": key }, text)
        : el("span", { class: "faint" }, text);
    return el(
      "nav",
      { class: "pager", "aria-label": "Features" },
      to(at - 1, "‹ previous", "previous"),
      el("a", { href: link, "data-key": "up" }, `all features of ${table.run.name}, ${table.layer}`),
      to(at + 1, "next ›", "next"),
    );
  }

  function head(table, index) {
    const feature = ordinal(table, index);
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

  /* A heat map of a sample, where the run was recorded with its patches. */
  const spots = (found, run) => (row) =>
    found.where && found.where[row] ? { grid: found.where[row], side: found.side, crop: run.crop } : null;

  function heatSwitch(found, page) {
    if (!explorer.meta.where || !found.where || !Object.keys(found.where).length) return null;
    const box = el("input", { type: "checkbox", id: "heat" });
    const set = () => page.classList.toggle("no-heat", !(heatShown = box.checked));
    box.checked = heatShown;
    box.addEventListener("change", set);
    set();
    return el("p", { class: "switch" }, box, el("label", { for: "heat" }, "show where it fires"), el("span", { class: "faint" }, ` ${explorer.meta.where.words}`));
  }

  function highest(table, found, page) {
    const samples = found.rank.map((row, place) => [row, found.act[place]]);
    return part("Highest samples", heatSwitch(found, page), explorer.tiles(samples, "top", spots(found, table.run)));
  }

  const WHICH = ["lowest fifth", "second", "third", "fourth", "highest fifth"];

  /* From silent over the fifths of its range of non-zero activations: features that look clean at the top need not be below. */
  function bands(table, found) {
    const column = (title, samples) => el("div", { class: "band" }, el("h3", null, title), samples.length ? explorer.tiles(samples, "pairs", spots(found, table.run)) : faint("none"));
    const fifths = found.bands.length ? found.bands.map((samples, place) => column(WHICH[place], samples)) : faint(`Active on fewer than ${explorer.count(explorer.meta.rare, "sample")}: all of them are above.`);
    return part("From silent to high", el("div", { class: "bands" }, column("silent", found.silent), fifths));
  }

  const table = (caption, head, rows) =>
    el(
      "table",
      { class: "small" },
      el("caption", { class: "unseen" }, caption),
      el("thead", null, el("tr", null, head.map((text) => el("th", { scope: "col" }, text)))),
      el("tbody", null, rows),
    );
  const cells = (first, ...rest) => el("tr", null, el("th", { scope: "row", dir: "auto" }, first), rest.map((text) => el("td", { class: "number" }, text)));

  function words(own, index, found) {
    const floor = `Shuffled captions reach r ${explorer.r(found.floor)}.`;
    if (!found.words.length) return part("Words", faint(`No word. ${floor}`));
    const top = Math.min(100, own.columns.count[index]);
    const rows = found.words.map(([word, r, inTop, share]) => cells(word, explorer.r(r), `in ${inTop} of its top ${top}`, `in ${explorer.percent(share)}`));
    return part("Words", table("Words", ["Word", "r", "Its captions", "All captions"], rows), faint(floor));
  }

  function objects(found) {
    if (!found.objects || !found.objects.length) return null;
    return part("Objects", table("Objects", ["Annotated object", "r"], found.objects.map(([name, r]) => cells(name, explorer.r(r)))));
  }

  function related(own, title, found, unit) {
    const { slug } = own.run;
    const rows = found.map(([feature, value]) => {
      const name = explorer.nameOf(slug, own.layer, feature) || "no word";
      const link = el("a", { href: explorer.featureLink(slug, own.layer, feature), dir: "auto" }, name);
      return cells(link, String(feature), explorer.r(value));
    });
    return rows.length ? el("div", null, el("h3", null, title), table(title, ["Feature", "Number", unit], rows)) : null;
  }

  /* The strips of a pair of features: samples on which both fire, only this one, only the other. */
  function strips(own, other, both, here, there, found) {
    const strip = (title, rows) => el("div", { class: "strip" }, el("h4", { dir: "auto" }, title), rows.length ? explorer.tiles(rows, "trios", spots(found, own.run)) : faint("no sample"));
    return el("div", { class: "strips" }, strip("both fire", both), strip(`only ${own.run.name} fires`, here), strip(`only ${other.name} fires`, there));
  }

  /* One partner: its correlation, its link, and its strips, which are made when they are first unfolded. */
  function partner(own, other, layer, [feature, held, r, both, here, there], place, found) {
    const name = explorer.nameOf(other.slug, layer, feature) || "no word";
    const link = el("a", { href: explorer.featureLink(other.slug, layer, feature), dir: "auto" }, `${name} (${feature})`);
    const folded = el("div");
    const button = el("button", { type: "button", class: "plain", "aria-label": `samples with ${name} (${feature})` }, "samples");
    const fold = (open) => {
      if (open && !folded.childElementCount) folded.append(strips(own, other, both, here, there, found));
      folded.hidden = !open;
      button.setAttribute("aria-expanded", open);
    };
    button.addEventListener("click", () => fold(folded.hidden));
    fold(place === 0);
    const line = el("p", null, el("strong", null, explorer.r(held)), el("span", { class: "faint" }, ` held out, ${explorer.r(r)} bare `), link, " ", button);
    return el("div", { class: "partner-of" }, line, folded);
  }

  /* The best partners in another run; what chance gives tells whether the run has the feature at all. */
  function partners(own, index, other, found) {
    const layer = own.columns.partner_layer[other.slug];
    const best = own.columns.held_out[other.slug][index];
    const floor = own.columns.floor?.[other.slug]?.[index];
    const list = found.partners[other.slug] || [];
    const told = best === null ? "too rare to tell" : `best held out ${explorer.r(best)}`;
    const chance = floor === null || floor === undefined ? "" : `, chance ${explorer.r(floor)}`;
    return el(
      "section",
      { class: "in-run" },
      el("h3", { dir: "auto" }, `${other.name}, ${layer}`),
      faint(`${told}${chance}`),
      list.length ? list.map((one, place) => partner(own, other, layer, one, place, found)) : faint("No partner."),
    );
  }

  function like(own, found) {
    const lists = [related(own, "Firing together", found.related, "r"), related(own, "Alike in the decoder", found.alike, "cosine")];
    return part("Related in this layer", lists.some(Boolean) ? el("div", { class: "related" }, lists) : faint("None."));
  }

  /* The page of the feature at a place of its table; `found` is its FEATURE. */
  explorer.featurePage = (own, index, found) => {
    const page = el("article", { class: `feature ${own.run.modality}` });
    const others = own.others.map((other) => partners(own, index, other, found));
    page.append(
      head(own, index),
      el(
        "div",
        { class: "columns" },
        el("div", { class: "main" }, highest(own, found, page)),
        el("div", { class: "aside" }, part("Activations", explorer.histogram(found.hist)), words(own, index, found), objects(found) || "", explorer.noteField(own, ordinal(own, index))),
      ),
      bands(own, found),
      others.length ? part("In other runs", others) : "",
      like(own, found),
    );
    return page;
  };

  /* The FEATURE at a place of a table. */
  explorer.featureData = async (own, index) => {
    const { chunk } = explorer.meta;
    const all = await explorer.load(`features/${own.run.slug}/${own.layer}/${Math.floor(index / chunk)}`);
    return all[index % chunk];
  };
})();
