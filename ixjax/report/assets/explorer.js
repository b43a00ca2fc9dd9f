"use strict";
/* The tree explorer. Only the rows in sight are elements; the map above them is one canvas. */

const ROW = 28; // pixels, as in report.css
const MAP_ROW = 12; // maximum pixels of a turn in the map
const MAP = 240; // maximum pixels of the map

/** Returns Q clipped to [0, 1] for colours; rewards of reactions can exceed this range. */
function fullness(q) {
  return Math.min(1, Math.max(0, q ?? 0));
}

class Explorer {
  constructor(place, data) {
    this.data = data;
    this.limits = { depth: Infinity, visits: 0, margin: 0, marked: false };
    this.rowsPlace = element("div", { class: "tree", role: "tree", tabindex: "0", "aria-label": "Tree" });
    this.space = element("div", { role: "none" });
    this.rowsPlace.append(this.space);
    this.reading = element("article", { class: "reading", tabindex: "0", "aria-label": "Dialogue" });
    this.condition = element("p", { class: "condition" });
    this.status = element("p", { class: "status", role: "status" });
    this.map = element("canvas", { class: "map", "aria-hidden": "true" });
    place.append(
      this.controls(), this.condition, this.status, this.map,
      element("div", { class: "panes" },
        element("div", {}, this.heads(), this.rowsPlace), this.reading));
    this.listen();
    this.showRun(0);
  }

  controls() {
    const number = (name, label, step) => {
      const input = element("input", { type: "number", min: "0", step, inputmode: "decimal" });
      input.dataset.filter = name;
      input.addEventListener("input", () => this.limit(name, input.value));
      return labelled(label, input);
    };
    const marked = element("input", { type: "checkbox", "data-filter": "marked" });
    marked.addEventListener("change", () => this.limit("marked", marked.checked));
    this.treePlace = element("span");
    const runs = this.data.runs.map((run, i) => [String(i), run.name]);
    const button = (text, action) => {
      const made = element("button", { type: "button" }, text);
      made.addEventListener("click", action);
      return made;
    };
    return element("div", { class: "controls" },
      ...(runs.length > 1 ? [labelled("Run", select(runs, (i) => this.showRun(Number(i))))] : []),
      this.treePlace,
      number("depth", "Maximum turns below the root", "1"),
      number("visits", "Minimum returns", "1"),
      number("margin", "Minimum margin", "0.05"),
      element("label", { class: "check" }, marked, "pairs only"),
      button("Open all", () => this.openAll()),
      button("Most visited path", () => this.openPath()));
  }

  heads() {
    return element("div", { class: "heads", "aria-hidden": "true" },
      element("span", { class: "tree-name" }, "turn"),
      element("span", { class: "q" }, "Q"), element("span", { class: "n" }, "N"));
  }

  listen() {
    this.rowsPlace.addEventListener("scroll", () => this.drawSoon());
    this.rowsPlace.addEventListener("keydown", (event) => this.key(event));
    this.rowsPlace.addEventListener("click", (event) => this.click(event));
    this.map.addEventListener("click", (event) => this.clickMap(event));
    new ResizeObserver(() => this.drawSoon()).observe(this.rowsPlace);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawMap());
  }

  showRun(i) {
    const trees = this.data.runs[i].trees;
    const options = trees.map((tree, j) => [String(j), tree.id]);
    const chosen = select(options, (j) => this.showTree(trees[Number(j)]));
    chosen.dataset.select = "tree";
    this.treePlace.replaceChildren(labelled("Condition", chosen));
    this.showTree(trees[0]);
  }

  showTree(columns) {
    this.tree = new SearchTree(columns);
    this.chosen = undefined; // the id of a node of the last tree
    this.spans = this.tree.spans();
    this.condition.textContent = conditionText(this.tree.condition);
    this.openPath();
  }

  openPath() {
    const path = this.tree.mostVisited();
    this.open = new Set(path);
    this.refresh();
    this.choose(path.at(-1));
  }

  openAll() {
    this.open = new Set(this.tree.parent.keys());
    this.refresh();
    this.choose(this.chosen);
  }

  limit(name, value) {
    const none = { depth: Infinity, visits: 0, margin: 0, marked: false };
    this.limits[name] = value === "" ? none[name] : name === "marked" ? value : Number(value);
    // Open the rows above matches, so that none is hidden.
    this.open = new Set(this.tree.parent.keys());
    this.refresh();
  }

  /** Redraws after a change of filters or open rows. */
  refresh() {
    this.state = this.tree.filter(this.limits);
    this.rows = this.tree.rows(this.state, this.open);
    this.space.style.height = `${this.rows.length * ROW}px`;
    const matches = this.state.reduce((sum, state) => sum + (state === 2), 0);
    const size = this.tree.size.toLocaleString("en");
    this.status.textContent =
      `${size} nodes, ${matches.toLocaleString("en")} pass the filters, ` +
      `${this.rows.length.toLocaleString("en")} rows are open.`;
    this.drawMap();
    this.draw();
  }

  choose(node) {
    this.chosen = node;
    const place = this.rows.indexOf(node);
    if (place >= 0) this.scrollTo(place);
    this.drawMap();
    this.draw();
    this.read(node);
  }

  scrollTo(place) {
    const top = place * ROW;
    const view = this.rowsPlace;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + ROW > view.scrollTop + view.clientHeight) {
      view.scrollTop = top + ROW - view.clientHeight;
    }
  }

  drawSoon() {
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => {
      this.waiting = 0;
      this.draw();
    });
  }

  /** Draws the visible rows, and the chosen one, which aria-activedescendant refers to. */
  draw() {
    const first = Math.max(0, Math.floor(this.rowsPlace.scrollTop / ROW) - 4);
    const last = Math.min(
      this.rows.length, Math.ceil((this.rowsPlace.scrollTop + this.rowsPlace.clientHeight) / ROW) + 4);
    const made = [];
    for (let place = first; place < last; place++) made.push(this.row(this.rows[place], place));
    this.space.replaceChildren(...made);
    const there = this.space.querySelector(`[data-node="${this.chosen}"]`);
    if (there) this.rowsPlace.setAttribute("aria-activedescendant", there.id);
    else this.rowsPlace.removeAttribute("aria-activedescendant");
  }

  row(node, place) {
    const tree = this.tree;
    const shownOf = (nodes) => nodes.filter((one) => this.state[one]);
    const inner = shownOf(tree.children[node]).length > 0;
    const siblings = node === 0 ? [0] : shownOf(tree.children[tree.parent[node]]);
    const open = this.open.has(node);
    const q = tree.value[node];
    const made = element("div", {
      class: `row${tree.path.has(node) ? " on-path" : ""}${this.state[node] === 2 ? "" : " context"}`,
      id: `row-${node}`, role: "treeitem", "data-node": node, "data-place": place,
      "aria-level": tree.depth[node] + 1,
      "aria-selected": node === this.chosen ? "true" : "false",
      "aria-expanded": inner ? String(open) : null,
      "aria-posinset": siblings.indexOf(node) + 1, "aria-setsize": siblings.length,
      "aria-label": `${this.speaker(node)}: ${this.said(node)}. Q ${shown(q, 2)}, ${tree.visits[node]} returns${this.markText(node)}`,
    });
    const indent = Math.min(tree.depth[node], 24) * (this.rowsPlace.clientWidth < 500 ? 7 : 14);
    made.style.top = `${place * ROW}px`;
    made.style.paddingLeft = `${indent + 4}px`;
    const bar = element("i");
    bar.style.width = `${100 * fullness(q)}%`;
    const said = element("span", { class: node > 0 && tree.text[node] === "" ? "said silence" : "said" }, this.said(node));
    made.append(
      element("span", { class: "toggle" }, inner ? (open ? "▾" : "▸") : ""),
      element("span", { class: "side" }, this.speaker(node)), said,
      ...this.marks(node),
      element("span", { class: "bar" }, bar),
      element("span", { class: "q" }, shown(q, 2)),
      element("span", { class: "n" }, String(tree.visits[node])));
    return made;
  }

  speaker(node) {
    return node === 0 ? "root" : this.tree.policy[node] ? "policy" : "user";
  }

  said(node) {
    if (node === 0) return this.tree.turns.at(-1)?.[1] ?? "(the policy opens)";
    return this.tree.text[node] || "(without a word)";
  }

  marks(node) {
    const times = (count) => (count > 1 ? ` ${count}×` : "");
    const made = [];
    const { chosen, rejected } = this.tree;
    if (chosen[node]) made.push(element("span", { class: "mark chosen" }, `▲ chosen${times(chosen[node])}`));
    if (rejected[node]) made.push(element("span", { class: "mark rejected" }, `▼ rejected${times(rejected[node])}`));
    return made;
  }

  markText(node) {
    return this.marks(node).map((mark) => `, ${mark.textContent.slice(2)}`).join("");
  }

  /** Draws the dialogue up to a node. */
  read(node) {
    const tree = this.tree;
    const facts = [`Q ${shown(tree.value[node])}`, `${tree.visits[node]} returns`, `turn ${tree.depth[node]} below the root`];
    const margin = tree.margin[node];
    if (!tree.policy[node] && margin > 0) facts.push(`margin ${margin.toFixed(3)} among the responses`);
    if (tree.cutSet.has(node)) facts.push("cut at the token limit");
    if (tree.overSet.has(node)) facts.push("end of the dialogue");
    this.reading.replaceChildren(
      element("p", { class: "status" }, `${facts.join(", ")}${this.markText(node)}`),
      dialogueList(tree.turnsTo(node), tree.turns.length));
    this.reading.scrollTop = this.reading.scrollHeight;
  }

  click(event) {
    const row = event.target.closest(".row");
    if (!row) return;
    const node = Number(row.dataset.node);
    if (event.target.classList.contains("toggle")) this.toggle(node);
    this.choose(node);
  }

  toggle(node, open = !this.open.has(node)) {
    if (open) this.open.add(node);
    else this.open.delete(node);
    this.refresh();
  }

  key(event) {
    const page = Math.max(1, Math.floor(this.rowsPlace.clientHeight / ROW) - 1);
    const at = Math.max(0, this.rows.indexOf(this.chosen));
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      const place = Math.min(this.rows.length - 1, Math.max(0, at + moves[event.key]));
      this.choose(this.rows[place]);
    } else if (event.key === "ArrowRight" || event.key === "ArrowLeft") this.sideways(event.key);
    else if (event.key === "Enter" || event.key === " ") this.toggle(this.chosen);
    else return;
    event.preventDefault();
  }

  /** Right opens a row, then moves to its first child; left closes it, then moves to its parent. */
  sideways(key) {
    const node = this.chosen;
    const below = this.tree.children[node].filter((child) => this.state[child]);
    const isOpen = this.open.has(node) && below.length > 0;
    if (key === "ArrowRight") {
      if (isOpen) this.choose(below[0]);
      else if (below.length) this.toggle(node, true);
    } else if (isOpen) this.toggle(node, false);
    else if (node > 0) this.choose(this.tree.parent[node]);
  }

  /** Draws the map: a row for each turn, width by visits, colour by Q. */
  drawMap() {
    const css = getComputedStyle(document.documentElement);
    const color = (name) => css.getPropertyValue(name).trim();
    const { levels } = this.tree;
    const step = this.mapRow();
    this.map.style.height = `${levels * step + 2}px`;
    const scale = devicePixelRatio || 1;
    const width = this.map.clientWidth;
    this.map.width = width * scale;
    this.map.height = (levels * step + 2) * scale;
    const pen = this.map.getContext("2d");
    pen.scale(scale, scale);
    const [fill, edge] = [color("--c0"), color("--accent")];
    for (let node = 0; node < this.tree.size; node++) {
      const [left, right] = this.spans[node];
      const span = Math.max(0.5, (right - left) * width - 1);
      pen.globalAlpha = (this.state[node] ? 1 : 0.25) * (0.12 + 0.88 * fullness(this.tree.value[node]));
      pen.fillStyle = fill;
      pen.fillRect(left * width, this.tree.depth[node] * step + 1, span, Math.max(step - 1, step / 2));
    }
    pen.globalAlpha = 1;
    pen.strokeStyle = edge;
    pen.lineWidth = 2;
    for (const node of this.chosen === undefined ? [] : this.tree.pathTo(this.chosen)) {
      const [left, right] = this.spans[node];
      pen.strokeRect(
        left * width + 1, this.tree.depth[node] * step + 2,
        Math.max(2, (right - left) * width - 3), Math.max(step - 3, 1));
    }
  }

  /** Returns the pixels of a turn in the map. */
  mapRow() {
    return Math.min(MAP_ROW, MAP / this.tree.levels);
  }

  clickMap(event) {
    const depth = Math.floor((event.offsetY - 1) / this.mapRow());
    const x = event.offsetX / this.map.clientWidth;
    const node = this.spans.findIndex(
      ([left, right], i) => this.tree.depth[i] === depth && left <= x && x < right);
    if (node < 0) return;
    for (const above of this.tree.pathTo(node)) this.open.add(above);
    this.refresh();
    this.choose(node);
  }
}

for (const place of document.querySelectorAll('[data-widget="explorer"]')) {
  new Explorer(place, dataOf("explorer"));
}
