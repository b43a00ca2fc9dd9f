"use strict";
/* A search tree as the explorer needs it: children, margins, filters, the rows that are open. */

class SearchTree {
  /** `columns`: from ixjax.report.explorer.tree_columns. */
  constructor(columns) {
    Object.assign(this, columns);
    this.size = this.parent.length;
    this.children = Array.from({ length: this.size }, () => []);
    this.depth = new Array(this.size).fill(0);
    for (let node = 1; node < this.size; node++) {
      this.children[this.parent[node]].push(node);
      this.depth[node] = this.depth[this.parent[node]] + 1;
    }
    this.levels = this.depth.reduce((most, depth) => Math.max(most, depth), 0) + 1;
    for (const list of this.children) list.sort((a, b) => this.visits[b] - this.visits[a] || a - b);
    this.margin = this.children.map((list) => this.spread(list));
    this.path = new Set(this.mostVisited());
    this.cutSet = new Set(this.cut);
    this.overSet = new Set(this.over);
  }

  /** Returns the range of Q over nodes; 0 if fewer than two have a Q. */
  spread(nodes) {
    const values = nodes.map((node) => this.value[node]).filter((value) => value !== null);
    return values.length < 2 ? 0 : Math.max(...values) - Math.min(...values);
  }

  /** Returns the path from the root along the most visited children. */
  mostVisited() {
    const path = [0];
    while (this.children[path.at(-1)].length) path.push(this.children[path.at(-1)][0]);
    return path;
  }

  /** Returns the path from the root to `node`. */
  pathTo(node) {
    const path = [];
    for (let at = node; at >= 0; at = this.parent[at]) path.push(at);
    return path.reverse();
  }

  /** Returns [role, text] of each turn of the dialogue up to `node`. */
  turnsTo(node) {
    const said = this.pathTo(node).slice(1);
    return [...this.turns, ...said.map((at) => [this.policy[at] ? "policy" : "user", this.text[at]])];
  }

  /** Returns the margin of a decision's responses; for a response, that of its parent. */
  marginAt(node) {
    return this.policy[node] ? this.margin[this.parent[node]] : this.margin[node];
  }

  marked(node) {
    return node in this.chosen || node in this.rejected;
  }

  /**
   * Returns an array: 2 for a node that passes the filters, 1 for an ancestor of one, 0 for a
   * hidden node.
   */
  filter({ depth, visits, margin, marked }) {
    const state = new Uint8Array(this.size);
    for (let node = this.size - 1; node >= 0; node--) {
      const passes = this.depth[node] <= depth && this.visits[node] >= visits &&
        (margin <= 0 || this.marginAt(node) >= margin) &&
        (!marked || this.marked(node));
      if (passes) state[node] = 2;
      if (state[node] && node > 0 && !state[this.parent[node]]) state[this.parent[node]] = 1;
    }
    return state;
  }

  /** Returns the rows to show: nodes that are not hidden and have only open ancestors. */
  rows(state, open) {
    const rows = [];
    const stack = [0];
    while (stack.length) {
      const node = stack.pop();
      if (!state[node] && node !== 0) continue;
      rows.push(node);
      if (!open.has(node)) continue;
      for (let i = this.children[node].length - 1; i >= 0; i--) stack.push(this.children[node][i]);
    }
    return rows;
  }

  /**
   * Returns each node's [left, right] in the map, in [0, 1]: children share their parent's width by
   * visits.
   */
  spans() {
    const spans = new Array(this.size);
    spans[0] = [0, 1];
    for (let node = 0; node < this.size; node++) {
      const list = this.children[node];
      const total = list.reduce((sum, child) => sum + Math.max(this.visits[child], 0.25), 0);
      let [left, right] = spans[node];
      const width = right - left;
      for (const child of list) {
        const end = left + width * Math.max(this.visits[child], 0.25) / total;
        spans[child] = [left, end];
        left = end;
      }
    }
    return spans;
  }
}
