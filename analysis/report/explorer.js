// Links the views and the table: the runs that are chosen are one list, `chosen`, which all of them show.
(() => {
  const state = JSON.parse(document.getElementById("explorer-state").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const rowsOf = (columns) => {
    const names = Object.keys(columns);
    const values = names.map((name) => Array.isArray(columns[name][0]) ? columns[name][1].map((code) => columns[name][0][code]) : columns[name]);
    return names.length ? values[0].map((_, row) => Object.fromEntries(names.map((name, place) => [name, values[place][row]]))) : [];
  };
  const data = Object.fromEntries(Object.entries(state.data).map(([name, columns]) => [name, rowsOf(columns)]));
  const views = {};
  const chosen = { brush: null, text: null };
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const line = () => getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
  const config = () => ({
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: ink(), titleColor: ink(), gridColor: line(), domainColor: line(), tickColor: line(), labelFontSize: 12, titleFontSize: 12 },
    title: { color: ink() }, legend: { labelColor: ink(), titleColor: ink(), labelFontSize: 12 }, header: { labelColor: ink(), labelFontSize: 12 },
  });

  const runs = () => {
    const lists = Object.values(chosen).filter((list) => list !== null);
    if (!lists.length) return [];
    const both = lists.reduce((some, list) => some.filter((run) => list.includes(run)));
    return both.length ? both : ["nothing is chosen"];
  };
  const refresh = () => {
    Object.values(views).forEach((view) => view.signal("chosen", runs()).runAsync());
    fill();
  };

  // the table
  const columns = [["run", "run", 0], ["step", "step", 0], ...state.columns];
  const table = document.getElementById("explorer-table");
  const count = document.getElementById("explorer-count");
  const order = { column: "run", up: true };
  const MOST = 300;
  const written = (value) => value === null || value === undefined ? "\u2013" : typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
  const cell = (kind, text) => { const made = document.createElement(kind); made.textContent = text; return made; };
  const head = () => {
    const row = document.createElement("tr");
    columns.forEach(([column, label]) => {
      const made = document.createElement("th");
      made.scope = "col";
      const button = cell("button", label);
      button.type = "button";
      button.addEventListener("click", () => { order.up = order.column === column ? !order.up : true; order.column = column; fill(); });
      made.append(button);
      made.dataset.column = column;
      row.append(made);
    });
    table.tHead.replaceChildren(row);
  };
  const compare = (one, other) => {
    const [a, b] = [one[order.column], other[order.column]];
    if (a === null || b === null) return (a === null) - (b === null);
    return (order.up ? 1 : -1) * (typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true }));
  };
  const fill = () => {
    const list = runs();
    const kept = data.checkpoints.filter((row) => !list.length || list.includes(row.run));
    const shown = [...kept].sort(compare).slice(0, MOST);
    table.tBodies[0].replaceChildren(...shown.map((row) => {
      const made = document.createElement("tr");
      columns.forEach(([column], place) => {
        const one = cell(place ? "td" : "th", written(row[column]));
        if (!place) one.scope = "row";
        made.append(one);
      });
      return made;
    }));
    table.querySelectorAll("thead th").forEach((made) => made.setAttribute("aria-sort", made.dataset.column !== order.column ? "none" : order.up ? "ascending" : "descending"));
    count.textContent = `${kept.length} of ${data.checkpoints.length} checkpoints` + (kept.length > MOST ? `, the first ${MOST} shown` : "");
  };
  document.getElementById("explorer-filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    const names = [...new Set(data.checkpoints.map((row) => row.run))];
    chosen.text = words.length ? names.filter((run) => words.some((word) => run.toLowerCase().includes(word))) : null;
    refresh();
  });
  document.getElementById("explorer-reset").addEventListener("click", () => {
    chosen.brush = chosen.text = null;
    document.getElementById("explorer-filter").value = "";
    draw();
  });

  // the views
  const watch = (view) => view.addSignalListener("brush", (_, box) => {
    const [across, up] = [view.signal("across"), view.signal("up")];
    const within = (value, ends) => value !== null && value >= Math.min(...ends) && value <= Math.max(...ends);
    const found = box.x && box.y ? data.checkpoints.filter((row) => within(row[across], box.x) && within(row[up], box.y)) : null;
    chosen.brush = found && [...new Set(found.map((row) => row.run))];
    clearTimeout(watch.later);
    watch.later = setTimeout(() => { Object.entries(views).forEach(([name, other]) => name !== "plane" && other.signal("chosen", runs()).runAsync()); fill(); }, 80);
  });
  const draw = async () => {
    for (const [name, spec] of Object.entries(state.specs)) {
      const source = spec.data ? spec.data.name : (spec.layer || [spec.spec])[0].data.name;
      const made = await vegaEmbed(`#view-${name}`, { ...spec, datasets: { [source]: data[source] } }, { actions: false, config: config(), renderer: "svg", tooltip: { theme: dark.matches ? "dark" : "light" } });
      views[name] = made.view;
      if (name === "plane") watch(made.view);
      await made.view.signal("chosen", runs()).runAsync();
      // groups of marks that say nothing of themselves, a brush among them, are no pictures to a screen reader
      document.querySelectorAll(`#view-${name} [role="graphics-symbol"]:not([aria-label])`).forEach((mark) => mark.removeAttribute("role"));
    }
    fill();
  };
  head();
  dark.addEventListener("change", draw);
  window.explorer = { views, runs, drawn: draw() };
})();
