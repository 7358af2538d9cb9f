"use strict";
/* A feature in the other runs: its partners, and the samples on which both fire, only it, and only the other. */
(() => {
  const { el, known } = explorer;
  const faint = (text) => el("p", { class: "faint" }, text);

  function strips({ run }, other, [both, here, there], found) {
    const strip = (title, rows) => {
      const tiles = rows.length ? explorer.tiles(rows, "trios", explorer.spots(found, run)) : faint("no sample");
      return el("div", { class: "strip" }, el("h4", { dir: "auto" }, title), tiles);
    };
    return el(
      "div",
      { class: "strips" },
      strip("both fire", both),
      strip(`only ${run.name} fires`, here),
      strip(`only ${other.name} fires`, there),
    );
  }

  /* A button that unfolds what `make` returns, which is made when it is first wanted. Returns both. */
  function folded(label, open, make) {
    const content = el("div");
    const button = el("button", { type: "button", class: "plain", "aria-label": label }, "samples");
    const fold = (shown) => {
      if (shown && !content.childElementCount) content.append(make());
      content.hidden = !shown;
      button.setAttribute("aria-expanded", shown);
    };
    button.addEventListener("click", () => fold(content.hidden));
    fold(open);
    return [button, content];
  }

  /* One partner: its correlation, the link to it, and its strips; those of the best one are unfolded. */
  function partner(table, other, [feature, held, r, ...rows], place, found) {
    const layer = table.columns.partner_layer[other.slug];
    const link = explorer.nameLink(other.slug, layer, feature, (name) => `${name} (${feature})`);
    const label = `samples with ${link.textContent}`;
    const [button, content] = folded(label, place === 0, () => strips(table, other, rows, found));
    const numbers = [
      el("strong", null, explorer.r(held)),
      el("span", { class: "faint" }, ` held out, ${explorer.r(r)} on all samples `),
    ];
    return el("div", { class: "partner-of" }, el("p", null, numbers, link, " ", button), content);
  }

  /* The best partners in another run; what chance gives tells whether the run has the feature at all. */
  explorer.partners = (table, index, other, found) => {
    const { columns } = table;
    const { slug } = other;
    const [best, floor] = [columns.held_out[slug][index], columns.floor?.[slug]?.[index]];
    const told = known(best) ? ` held out ${explorer.r(best)}` : " too rare to tell";
    const chance = known(best) && known(floor) ? `, chance gives ${explorer.r(floor)}` : "";
    const list = found.partners[slug] || [];
    return el(
      "section",
      { class: "in-run" },
      el("h3", { dir: "auto" }, `${other.name}, ${columns.partner_layer[slug]}`, el("span", { class: "faint" }, told, chance)),
      list.length ? list.map((one, place) => partner(table, other, one, place, found)) : faint("No partner."),
    );
  };
})();
