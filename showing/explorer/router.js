"use strict";
/* From the address to a page, and the keys. #/?… is the list of features; #/run/layer/feature is one of them. */
(() => {
  const { el } = explorer;
  const main = () => document.getElementById("main");
  const scrolled = new Map(); // how far each address was scrolled when it was left
  let followed = false; // whether a link or a key led here, and not the back button
  let turn = 0; // of the latest address: what comes late for an earlier one is dropped
  let here = null; // {table, feature} of the page that is shown

  const address = () => location.hash || "#/";

  class Unknown extends Error {}

  const decoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return text;
    }
  };

  /* "a, b or c"; the first of many. */
  function choice(names) {
    const some = names.length > 12 ? [...names.slice(0, 12), `${names.length - 12} more`] : names;
    return some.length > 1 ? `${some.slice(0, -1).join(", ")} and ${some.at(-1)}` : some.join("");
  }

  function runNamed(name) {
    const run = name ? explorer.runOf(name) : explorer.meta.runs[0];
    if (!run) throw new Unknown(`There is no run ${name} here; there are ${choice(explorer.meta.runs.map((one) => one.name))}.`);
    return run;
  }

  function layerNamed(run, name) {
    const names = run.layers.map((layer) => layer.name);
    if (!names.length) throw new Unknown(`${run.name} has no layer with a live feature.`);
    if (name && !names.includes(name)) throw new Unknown(`${run.name} has no layer ${name} here; it has ${choice(names)}.`);
    return name || names.at(-1);
  }

  function placeOf(table, text) {
    const { run, layer, quality, columns, place } = table;
    const number = /^\d+$/.test(text) ? Number(text) : -1;
    if (place.has(number)) return place.get(number);
    const there = `${run.name}, ${layer} has features 0 to ${quality.d_sae - 1}, of which ${explorer.whole(table.n)} are active on a sample`;
    const example = table.n ? `: try ${columns.feature[0]}` : "";
    if (number >= 0 && number < quality.d_sae) throw new Unknown(`Feature ${number} is active on no sample; ${there}${example}.`);
    throw new Unknown(`There is no feature ${text}; ${there}${example}.`);
  }

  function show(title, ...content) {
    document.title = title ? `${title} · ${explorer.title}` : explorer.title;
    main().replaceChildren(...content);
  }

  async function showList(state, mine) {
    const run = runNamed(state.run);
    const table = await explorer.table(run, layerNamed(run, state.layer));
    if (mine !== turn) return;
    const from = here && here.table === table ? here.feature : undefined;
    here = { table };
    show("", el("h1", { class: "unseen" }, explorer.title), explorer.overview(), explorer.list(table, state));
    if (from !== undefined) explorer.focusRow(from);
  }

  async function showFeature(parts, mine) {
    const run = runNamed(decoded(parts[0]));
    const table = await explorer.table(run, layerNamed(run, decoded(parts[1] || "")));
    const index = placeOf(table, decoded(parts[2] || ""));
    const [found] = await Promise.all([explorer.featureData(table, index), explorer.partnerTables(table)]);
    if (mine !== turn) return;
    const page = explorer.featurePage(table, index, found);
    here = { table, feature: table.columns.feature[index] };
    show(`${table.columns.name[index] || "no word"}, ${run.name} ${here.feature}`, page);
    page.querySelector("h1").focus({ preventScroll: true });
  }

  function showProblem(error) {
    here = null;
    show("Not here", el("h1", null, "Not here"), el("p", { class: "problem", role: "alert", dir: "auto" }, error.message), el("p", null, el("a", { href: "#/" }, "to the first page")));
  }

  /* Show what the address says, as far scrolled as it was when the back button leads to it again. */
  async function route() {
    const mine = ++turn;
    const [path, query] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
    const known = followed ? 0 : scrolled.get(address()) || 0;
    followed = false;
    try {
      if (path) await showFeature(path.split("/"), mine);
      else await showList(Object.fromEntries(new URLSearchParams(query || "")), mine);
    } catch (error) {
      if (mine !== turn) return;
      showProblem(error);
      if (!(error instanceof Unknown)) console.error(error);
    }
    if (mine === turn) window.scrollTo(0, known);
  }

  const go = (hash) => {
    followed = true;
    location.hash = hash;
  };

  function click(name) {
    const link = main().querySelector(`a[data-key="${name}"]`);
    if (link) go(link.getAttribute("href"));
  }

  /* To the list as it was left, with the search box focused where the key was "/". */
  function up() {
    if (here && here.feature !== undefined) {
      followed = false; // as by the back button: to the row that was left
      location.hash = explorer.lastList(here.table).link;
    } else explorer.leaveSearch();
  }

  async function search() {
    if (!here || here.feature !== undefined) up();
    for (let frame = 0; frame < 60 && (!here || here.feature !== undefined); frame++) await new Promise(requestAnimationFrame);
    if (here && here.feature === undefined) explorer.focusSearch();
  }

  const onList = { j: () => explorer.stepRow(1), k: () => explorer.stepRow(-1) };
  const onFeature = { j: () => click("next"), k: () => click("previous"), ArrowRight: () => click("next"), ArrowLeft: () => click("previous") };

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !here) return;
    const { target } = event;
    const typing = target.matches("input:not([type=checkbox]), textarea, select");
    const row = target.closest("tbody tr");
    const list = { ...onList, ...(row || target.type === "search" ? { ArrowDown: onList.j, ArrowUp: onList.k } : {}) };
    const keys = { "/": search, Escape: up, ...(here.feature === undefined ? list : onFeature) };
    const vertical = target.type === "search" && event.key.startsWith("Arrow");
    if (!keys[event.key] || (typing && event.key !== "Escape" && !vertical)) return;
    event.preventDefault();
    keys[event.key]();
  }

  function start() {
    explorer.title = document.title;
    if (!explorer.meta) {
      showProblem(new Error("data/meta.js is missing or damaged: copy the folder again, whole"));
      return;
    }
    history.scrollRestoration = "manual";
    document.getElementById("colophon").append(...explorer.colophon());
    document.addEventListener("keydown", key);
    document.addEventListener("click", (event) => {
      followed = Boolean(event.target.closest('a[href^="#"]:not([data-key=up])'));
    });
    document.getElementById("skip").addEventListener("click", (event) => {
      event.preventDefault(); // its address would be taken for one of ours
      main().focus();
    });
    window.addEventListener("scroll", () => scrolled.set(address(), window.scrollY), { passive: true });
    window.addEventListener("hashchange", route);
    route();
  }

  document.addEventListener("DOMContentLoaded", start);
})();
