"use strict";
// Tables and plots are in the page; this adds the theme's button, sorting, filters, and a box with a mark's words.
(function () {
  function make(name, attributes, text) {
    const node = document.createElement(name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text) node.textContent = text;
    return node;
  }

  // ---- theme
  const root = document.documentElement;
  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  const toggle = make("button", { type: "button" });
  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches;
  }
  function label() { toggle.textContent = isDark() ? "Light" : "Dark"; }
  try { // storage may be forbidden
    const kept = localStorage.getItem("moiety-theme");
    if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  } catch (e) {}
  toggle.addEventListener("click", function () {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { localStorage.setItem("moiety-theme", root.dataset.theme); } catch (e) {}
    label();
  });
  prefersDark.addEventListener("change", label);
  toggle.setAttribute("aria-label", "Switch between the light and the dark theme");
  label();
  document.getElementById("tools").append(toggle);

  // ---- sorting
  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.v !== undefined ? cell.dataset.v : cell.textContent;
  }
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach(function (head, column) {
      const button = make("button", { type: "button" }, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", function () {
        const up = head.getAttribute("aria-sort") !== "ascending";
        const rows = Array.from(table.tBodies[0].rows);
        const numeric = rows.some(function (row) { return row.cells[column].dataset.v !== undefined; });
        const sign = up ? 1 : -1;
        rows.sort(function (a, b) {
          const x = value(a, column), y = value(b, column);
          if (!numeric) return sign * x.localeCompare(y, "en", { numeric: true });
          if (x === "" || y === "") return (x === "") - (y === ""); // what is not known comes last
          return sign * (Number(x) - Number(y));
        });
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        table.tBodies[0].append(...rows);
      });
    });
  }

  // ---- filters
  const all = document.getElementById("all");
  const bar = document.getElementById("filters");
  if (all && bar) {
    const rows = Array.from(all.tBodies[0].rows);
    const texts = new Map(rows.map(function (row) { return [row, row.textContent.toLowerCase()]; }));
    const selects = [];
    const count = make("output", { "aria-live": "polite" });
    const search = make("input", { type: "search", placeholder: "any words" });
    function apply() {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of rows) {
        const text = texts.get(row);
        const fits = words.every(function (word) { return text.includes(word); }) &&
          selects.every(function (s) {
            return !s.node.value || s.node.value === row.cells[s.column].textContent.trim();
          });
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = shown === rows.length ? rows.length + " rows" : shown + " of " + rows.length + " rows";
    }
    function add(name, node) {
      const field = make("label", {}, name);
      field.append(node);
      bar.append(field);
      node.addEventListener("input", apply);
    }
    add("Find", search);
    Array.from(all.tHead.rows[0].cells).forEach(function (head, column) {
      if (head.dataset.filter === undefined) return;
      const values = new Set(rows.map(function (row) { return row.cells[column].textContent.trim(); }));
      if (values.size < 2) return;
      const node = make("select", {});
      node.append(make("option", { value: "" }, "all"));
      for (const v of Array.from(values).sort()) node.append(make("option", { value: v }, v));
      selects.push({ node: node, column: column });
      add(head.textContent, node);
    });
    bar.append(count);
    apply();
  }

  // ---- marks: hover, tap, and arrow keys within a plot
  const tip = document.getElementById("tip");
  let current = null;
  function hide() {
    if (current) current.classList.remove("on");
    current = null;
    tip.hidden = true;
  }
  function show(mark) {
    if (current) current.classList.remove("on");
    current = mark;
    mark.classList.add("on");
    tip.textContent = mark.getAttribute("aria-label");
    tip.hidden = false;
    const box = mark.getBoundingClientRect(), width = document.documentElement.clientWidth;
    const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 8), width - tip.offsetWidth - 8);
    const above = box.top - tip.offsetHeight - 6;
    tip.style.left = Math.max(left, 8) + window.scrollX + "px";
    tip.style.top = (above > 50 ? above : box.bottom + 6) + window.scrollY + "px";
  }
  for (const plot of document.querySelectorAll("svg.plot")) {
    const marks = Array.from(plot.querySelectorAll(".mark"));
    marks.forEach(function (mark, i) {
      const title = mark.querySelector("title");
      mark.setAttribute("aria-label", title.textContent);
      mark.setAttribute("role", "img");
      mark.setAttribute("tabindex", i ? "-1" : "0");
      title.remove(); // the browser's own box would stand beside ours
    });
    const of = function (event) { return event.target.closest(".mark"); };
    plot.addEventListener("pointerover", function (event) { if (of(event)) show(of(event)); });
    plot.addEventListener("pointerout", function (event) { if (event.pointerType === "mouse") hide(); });
    plot.addEventListener("click", function (event) { if (of(event)) show(of(event)); });
    plot.addEventListener("focusin", function (event) { if (of(event)) show(of(event)); });
    plot.addEventListener("focusout", hide);
    plot.addEventListener("keydown", function (event) {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const at = marks.indexOf(document.activeElement);
      if (event.key === "Escape") hide();
      if (!step || at === -1) return;
      const next = marks[(at + step + marks.length) % marks.length];
      marks[at].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
      event.preventDefault();
    });
  }
  document.addEventListener("click", function (event) { if (!event.target.closest(".mark")) hide(); });

  // ---- paper shows what the screen folds away
  let opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    for (const d of opened) d.open = true;
  });
  window.addEventListener("afterprint", function () { for (const d of opened) d.open = false; });
})();
