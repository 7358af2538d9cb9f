"use strict";
/* The page's one global. Data files call explorer.put(key, value); explorer.load(key) asks for one.
   Text of any origin reaches the page as text nodes and attributes alone: no string is ever parsed as HTML. */
const explorer = {};

(() => {
  const values = new Map();
  const asked = new Map();

  explorer.put = (key, value) => {
    values.set(key, value);
    if (key === "meta") explorer.meta = value;
  };

  /* The file that holds a key. Slugs, layers and numbers come from META, never from the address bar. */
  function file(key) {
    const [kind, slug, layer, number] = key.split("/");
    if (kind === "captions") return `data/captions/${explorer.padded(slug, 3)}.js`;
    if (kind === "table") return `data/${slug}-${layer}.js`;
    return `data/${slug}-${layer}/f${explorer.padded(number, 3)}.js`;
  }

  function request(key) {
    return new Promise((resolve, reject) => {
      const script = document.createElement("script");
      const missing = () => reject(new Error(`${file(key)} is missing or damaged: copy the folder again, whole`));
      script.src = file(key);
      script.addEventListener("load", () => (values.has(key) ? resolve(values.get(key)) : missing()));
      script.addEventListener("error", missing);
      document.head.append(script);
    });
  }

  /* A promise of a key's value. A script element brings it: pages opened from disk may not fetch. */
  explorer.load = (key) => {
    if (!asked.has(key)) asked.set(key, request(key));
    return asked.get(key);
  };

  const known = (value) => value !== null && value !== undefined;
  explorer.known = known;

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") node.addEventListener(name, value);
      else if (known(value) && value !== false) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat(Infinity).filter((child) => known(child) && child !== ""));
    return node;
  }

  /* An element: its attributes (a function listens to the event of its name), then its children; strings are text. */
  explorer.el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  explorer.svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  /* Numbers as a paper prints them: r without its zero, shares in per cent, three digits of an activation. */
  explorer.padded = (number, digits) => String(number).padStart(digits, "0");
  explorer.whole = (number) => (known(number) ? number.toLocaleString("en") : "–");
  explorer.r = (value, digits = 2) =>
    known(value) ? value.toFixed(digits).replace("-", "−").replace(/^(−?)0\./, "$1.") : "–";
  explorer.activation = (value) => {
    if (!known(value)) return "–";
    const text = Math.abs(value) >= 1000 ? explorer.whole(Math.round(value)) : value.toPrecision(3);
    return text.replace("-", "−");
  };
  explorer.percent = (share) => {
    if (!known(share)) return "–";
    const value = 100 * share;
    return `${value === 0 || value >= 9.95 ? Math.round(value) : value.toPrecision(value < 0.1 ? 1 : 2)} %`;
  };
  explorer.count = (number, one, many = `${one}s`) => `${explorer.whole(number)} ${number === 1 ? one : many}`;

  /* Where a run's feature is; the address of a layer's table with its search, order and filters. */
  explorer.featureLink = (slug, layer, feature) => `#/${slug}/${encodeURIComponent(layer)}/${feature}`;
  explorer.listLink = (state) => {
    const query = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
    return `#/${query.size ? `?${query}` : ""}`;
  };

  explorer.runOf = (slugOrName) =>
    explorer.meta.runs.find((run) => run.slug === slugOrName) ||
    explorer.meta.runs.find((run) => run.name === slugOrName);

  const tables = new Map();

  /* A layer's table with its run, the other runs that it is compared with, and the place of each feature number. */
  explorer.table = (run, layer) => {
    const key = `table/${run.slug}/${layer}`;
    if (!tables.has(key)) tables.set(key, explorer.load(key).then((columns) => prepared(run, layer, columns)));
    return tables.get(key);
  };
  const loaded = new Map();

  function prepared(run, layer, columns) {
    const others = Object.keys(columns.partner).map(explorer.runOf).filter(Boolean);
    const place = new Map(columns.feature.map((feature, index) => [feature, index]));
    const quality = run.layers.find((one) => one.name === layer);
    const table = { run, layer, columns, others, place, quality, n: columns.feature.length };
    loaded.set(`${run.slug}/${layer}`, table);
    return table;
  }

  /* The name of a feature, "" where it has none or where its table has not been loaded. */
  explorer.nameOf = (slug, layer, feature) => {
    const table = loaded.get(`${slug}/${layer}`);
    const index = table && table.place.get(feature);
    return index === undefined ? "" : table.columns.name[index];
  };

  /* The tables of the layers in which the partners of a table's features are: they hold the partners' names. */
  explorer.partnerTables = (table) =>
    Promise.all(
      table.others.map((other) => explorer.table(other, table.columns.partner_layer[other.slug]).catch(() => null)),
    );

  explorer.isDense = (table, index) => table.columns.count[index] > explorer.meta.dense * explorer.meta.n_samples;
  explorer.isRare = (table, index) => table.columns.count[index] < explorer.meta.rare;
})();
