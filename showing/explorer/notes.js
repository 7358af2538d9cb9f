"use strict";
/* Stars and notes, kept in this browser where it allows that, under keys that begin with the data's fingerprint. */
(() => {
  const prefix = () => `explorer:${explorer.meta.fingerprint}:`;
  const keyOf = (run, layer, feature) => `${prefix()}${run.name}/${layer}/${feature}`;

  /* The browser's store, or null: pages opened from disk may be refused it. */
  function store() {
    try {
      return window.localStorage;
    } catch {
      return null;
    }
  }

  function parsed(text) {
    try {
      return { star: false, note: "", name: "", ...JSON.parse(text) };
    } catch {
      return { star: false, note: "", name: "" };
    }
  }

  explorer.noteOf = (run, layer, feature) => parsed(store() && store().getItem(keyOf(run, layer, feature)));

  /* Keep what has changed of a feature's star and note. Returns whether the browser kept it. */
  explorer.keepNote = (run, layer, feature, change) => {
    const name = explorer.nameOf(run.slug, layer, feature);
    const note = { ...explorer.noteOf(run, layer, feature), name, ...change };
    try {
      if (note.star || note.note) store().setItem(keyOf(run, layer, feature), JSON.stringify(note));
      else store().removeItem(keyOf(run, layer, feature));
      return true;
    } catch {
      return false;
    }
  };

  /* All that is kept of this data set: [run, layer, feature, note]. */
  explorer.notes = () => {
    const keys = store() ? Object.keys(store()).filter((key) => key.startsWith(prefix())) : [];
    return keys.sort().map((key) => {
      const [, run, layer, feature] = key.slice(prefix().length).match(/^(.*)\/([^/]*)\/(\d+)$/) || [];
      return [run, layer, Number(feature), parsed(store().getItem(key))];
    });
  };

  /* The numbers of a table's starred features. */
  explorer.starred = ({ run, layer }) => {
    const own = explorer.notes().filter((one) => one[0] === run.name && one[1] === layer && one[3].star);
    return new Set(own.map((one) => one[2]));
  };

  /* A cell of CSV. A leading sign that a spreadsheet would run as a formula is kept from it by an apostrophe. */
  function cell(value) {
    const text = String(value);
    return `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  }

  explorer.notesAsCsv = () => {
    const lines = [["run", "layer", "feature", "name", "star", "note"]];
    for (const [run, layer, feature, { name, star, note }] of explorer.notes()) {
      lines.push([run, layer, feature, name, star ? 1 : 0, note]);
    }
    return lines.map((line) => `${line.map(cell).join(",")}\r\n`).join("");
  };

  explorer.downloadNotes = () => {
    const address = URL.createObjectURL(new Blob(["\ufeff", explorer.notesAsCsv()], { type: "text/csv" }));
    explorer.el("a", { href: address, download: "feature-notes.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  };

  /* A star to press, for a feature of a table. */
  explorer.star = ({ run, layer }, feature, pressed = () => {}) => {
    const set = (on) => {
      button.setAttribute("aria-pressed", on);
      button.textContent = on ? "★" : "☆";
    };
    const toggle = () => {
      const star = button.getAttribute("aria-pressed") !== "true";
      if (explorer.keepNote(run, layer, feature, { star })) set(star);
      pressed();
    };
    const button = explorer.el("button", {
      type: "button",
      class: "star",
      "aria-label": `star of feature ${feature}`,
      click: toggle,
    });
    set(explorer.noteOf(run, layer, feature).star);
    return button;
  };

  /* The field for a feature's note. */
  explorer.noteField = ({ run, layer }, feature) => {
    const said = explorer.el("p", { class: "faint", role: "status" });
    const keep = () => {
      const kept = explorer.keepNote(run, layer, feature, { note: field.value });
      said.textContent = kept ? "" : "This browser keeps no notes for this page.";
    };
    const field = explorer.el("textarea", { id: "note", rows: 3, input: keep });
    field.value = explorer.noteOf(run, layer, feature).note;
    return explorer.el("div", { class: "note" }, explorer.el("label", { for: "note" }, "Note"), field, said);
  };
})();
