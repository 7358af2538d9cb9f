"use strict";
/* Which features of a layer the table shows, in which order: arrays of places in the columns, sorted by index. */
(() => {
  /* What a table can be sorted by; `rising` columns start with their lowest value. A run's slug follows "in:". */
  explorer.sortable = (table) => {
    const { columns, others } = table;
    return new Map([
      ["name", { values: columns.name.map((name) => name.toLowerCase() || null), rising: true }],
      ["feature", { values: columns.feature, rising: true }],
      ["score", { values: columns.score }],
      ["count", { values: columns.count }],
      ["mean", { values: columns.mean }],
      ...others.map(({ slug }) => [`in:${slug}`, { values: columns.held_out[slug] }]),
      ...(columns.delta ? [["delta", { values: columns.delta }]] : []),
      ...(columns.status ? [["status", { values: columns.status, rising: true }]] : []),
    ]);
  };

  /* Sort by what tells: the held-out correlation with the first compared run, else how well the name fits. */
  explorer.defaultSort = (table) => (table.others.length ? `-in:${table.others[0].slug}` : "-score");

  const before = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

  /* The places of a column's values in order; those without a value come last in either direction. */
  function order(values, sign) {
    const places = values.map((_, index) => index);
    const told = places.filter((index) => values[index] !== null && values[index] !== undefined);
    const empty = places.filter((index) => values[index] === null || values[index] === undefined);
    return told.sort((a, b) => sign * before(values[a], values[b]) || a - b).concat(empty);
  }

  function sorted(table, sort) {
    table.orders = table.orders || new Map();
    if (!table.orders.has(sort)) {
      const key = sort.replace(/^-/, "");
      const column = explorer.sortable(table).get(key);
      if (!column) return sorted(table, explorer.defaultSort(table));
      table.orders.set(sort, order(column.values, sort.startsWith("-") ? -1 : 1));
    }
    return table.orders.get(sort);
  }

  /* A feature's words in lower case: its name and those of its partners, as far as their tables have been loaded. */
  function haystacks(table) {
    const { columns, others } = table;
    return columns.name.map((name, index) => {
      const partners = others.map(({ slug }) =>
        explorer.nameOf(slug, columns.partner_layer[slug], columns.partner[slug][index]),
      );
      return [name, ...partners].join("\n").toLowerCase();
    });
  }

  /* Forget the search's words: more partners' names have come. */
  explorer.renewSearch = (table) => {
    table.haystacks = null;
  };

  /* Whether a feature has every word of a search in a name, or the word is its number or a partner's. */
  function matcher(table, text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return () => true;
    table.haystacks = table.haystacks || haystacks(table);
    const numbers = [table.columns.feature, ...table.others.map(({ slug }) => table.columns.partner[slug])];
    const has = (index, word) =>
      table.haystacks[index].includes(word) ||
      (/^\d+$/.test(word) && numbers.some((column) => column[index] === Number(word)));
    return (index) => words.every((word) => has(index, word));
  }

  /* The share that a per-cent field holds; a field that is empty or no number limits nothing. */
  function limit(text, otherwise) {
    const value = Number.parseFloat(text);
    return Number.isFinite(value) ? (value / 100) * explorer.meta.n_samples : otherwise;
  }

  /* The places to show, in order, and how many dense and rare features were left out only because they are that. */
  explorer.view = (table, state) => {
    const { columns } = table;
    const matches = matcher(table, state.q || "");
    const [least, most] = [limit(state.min, 0), limit(state.max, Infinity)];
    const starred = state.star ? explorer.starred(table) : null;
    const shown = [];
    const hidden = { dense: 0, rare: 0 };
    for (const index of sorted(table, state.sort || explorer.defaultSort(table))) {
      const count = columns.count[index];
      if (count < least || count > most) continue;
      if (state.status && columns.status && columns.status[index] !== state.status) continue;
      if (starred && !starred.has(columns.feature[index])) continue;
      if (!matches(index)) continue;
      if (!state.dense && explorer.isDense(table, index)) hidden.dense++;
      else if (state.rare && explorer.isRare(table, index)) hidden.rare++;
      else shown.push(index);
    }
    return { shown, hidden };
  };
})();
