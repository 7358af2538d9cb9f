"use strict";
/* The fields above the table: which run and layer, the search, and what to leave out. */
(() => {
  const { el } = explorer;
  const option = (value, text) => el("option", { value }, text);

  function layerField(table) {
    const all = explorer.meta.runs.flatMap((run) => run.layers.map((layer) => [run, layer.name]));
    const go = () => {
      const [run, layer] = all[Number(select.value)];
      location.hash = explorer.listLink({ run: run.slug, layer });
    };
    const options = all.map(([run, layer], place) => option(place, `${run.name}, ${layer}`));
    const select = el("select", { id: "filter-layer", change: go }, options);
    select.value = all.findIndex(([run, layer]) => run === table.run && layer === table.layer);
    return el("div", { class: "field" }, el("label", { for: "filter-layer" }, "Run and layer"), select);
  }

  const search = { type: "search", autocomplete: "off", spellcheck: "false", "aria-keyshortcuts": "/" };
  const percent = { type: "number", min: 0, max: 100, step: "any", inputmode: "decimal" };
  const box = { type: "checkbox" };
  const read = (input) => (input.type === "checkbox" ? (input.checked ? "1" : "") : input.value);

  /* The fields of a table: `root`; `search`, its search field; `fill(state)`. `change` is told what a user changed. */
  explorer.filters = (table, change) => {
    const inputs = {};
    const field = (name, label, attributes, options = null) => {
      const id = `filter-${name}`;
      const changed = () => change({ [name]: read(input) });
      const input = el(options ? "select" : "input", { id, ...attributes, input: changed }, options || []);
      inputs[name] = input;
      return el("div", { class: `field of-${attributes.type || "choice"}` }, el("label", { for: id }, label), input);
    };
    const statuses = [...new Set((table.columns.status || []).filter(Boolean))].sort();
    const choices = [option("", "any"), ...statuses.map((text) => option(text, text))];
    const root = el(
      "div",
      { class: "filters", role: "search" },
      layerField(table),
      field("q", "Search names and numbers", search),
      field("min", "Active on, from %", percent),
      field("max", "to %", percent),
      statuses.length ? field("status", "Status", {}, choices) : null,
      field("dense", "show dense", box),
      field("rare", "hide rare", box),
      field("star", "starred only", box),
    );
    const fill = (state) => {
      for (const [name, input] of Object.entries(inputs)) {
        if (input.type === "checkbox") input.checked = Boolean(state[name]);
        else if (input.value !== (state[name] || "")) input.value = state[name] || "";
      }
    };
    return { root, fill, search: inputs.q };
  };
})();
