"use strict";
/* From the address to a page, and the keys. #/?… is the list of features; #/run/layer/feature is one of them. */
(() => {
  const { el } = explorer;
  const main = () => document.getElementById("main");
  const scrolled = new Map(); // how far each address was scrolled when it was left
  let followed = false; // whether a link or a key led here, and not the back button
  let turn = 0; // of the latest address: what comes late for an earlier one is dropped
  let here = null; // {table, feature} of the page that is shown
  let steps = Promise.resolve(); // of the keys that step from feature to feature, one after another
  let arrived = () => {}; // called when the page of an address is shown

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
    const names = explorer.meta.runs.map((one) => one.name);
    if (!run) throw new Unknown(`There is no run ${name} here; there are ${choice(names)}.`);
    return run;
  }

  function layerNamed(run, name) {
    const names = run.layers.map((layer) => layer.name);
    if (!names.length) throw new Unknown(`${run.name} has no layer with a live feature.`);
    if (name && !names.includes(name)) {
      throw new Unknown(`${run.name} has no layer ${name} here; it has ${choice(names)}.`);
    }
    return name || names.at(-1);
  }

  function placeOf(table, text) {
    const { run, layer, quality, columns, place } = table;
    const number = /^\d+$/.test(text) ? Number(text) : -1;
    if (place.has(number)) return place.get(number);
    const dead = number >= 0 && number < quality.d_sae;
    const words = dead ? `Feature ${number} is active on no sample` : `There is no feature ${text}`;
    const live = `${explorer.whole(table.n)} are active on a sample${table.n ? `: try ${columns.feature[0]}` : ""}`;
    throw new Unknown(`${words}; ${run.name}, ${layer} has features 0 to ${quality.d_sae - 1}, of which ${live}.`);
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
    const title = el("h1", { class: "unseen" }, explorer.title);
    show("", title, explorer.overview(), explorer.list(table, state));
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
    const line = el("p", { class: "problem", role: "alert", dir: "auto" }, error.message);
    const back = el("p", null, el("a", { href: "#/" }, "to the first page"));
    show("Not here", el("h1", null, "Not here"), line, back);
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
    if (mine !== turn) return;
    window.scrollTo(0, known);
    arrived();
  }

  const go = (hash) => {
    followed = true;
    location.hash = hash;
  };

  /* To the feature before or behind, once the steps before are shown: two quick keys are two steps. */
  function step(name) {
    steps = steps.then(() => new Promise((resolve) => {
      const link = main().querySelector(`a[data-key="${name}"]`);
      if (!link) return resolve();
      arrived = resolve;
      go(link.getAttribute("href"));
    }));
  }

  /* To the list as it was left, with the search box focused where the key was "/". */
  function up() {
    if (here && here.feature !== undefined) {
      followed = false; // as by the back button: to the row that was left
      location.hash = explorer.lastList(here.table).link;
    } else explorer.leaveSearch();
  }

  const onList = () => Boolean(here && here.feature === undefined);

  async function search() {
    if (!onList()) up();
    for (let frame = 0; frame < 60 && !onList(); frame++) await new Promise(requestAnimationFrame);
    if (onList()) explorer.focusSearch();
  }

  const down = (step) => () => explorer.stepRow(step);
  const turnTo = (name) => () => step(name);
  const LIST = { j: down(1), k: down(-1) };
  const ROW = { ArrowDown: down(1), ArrowUp: down(-1) }; // elsewhere the arrows scroll the page
  const FEATURE = { j: turnTo("next"), k: turnTo("previous"), ArrowRight: turnTo("next"), ArrowLeft: turnTo("previous") };

  /* What the keys do on the page that is shown, for who is at `target`. */
  function keysAt(target) {
    const searching = target.type === "search";
    const both = { Escape: up, ...(searching || target.closest("tbody tr") ? ROW : {}) };
    if (target.matches("input:not([type=checkbox]), textarea, select")) return searching ? both : { Escape: up };
    return onList() ? { "/": search, ...both, ...LIST } : { "/": search, Escape: up, ...FEATURE };
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !here) return;
    const act = keysAt(event.target)[event.key];
    if (!act) return;
    event.preventDefault();
    act();
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
