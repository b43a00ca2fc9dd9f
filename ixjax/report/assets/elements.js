"use strict";
/* Elements from data. Text is set as text, never as markup: it comes from people and models. */

/** Returns the page's JSON data of this name. */
function dataOf(name) {
  return JSON.parse(document.getElementById(`data-${name}`).textContent);
}

/** Returns an element with attributes (`class`, `aria-label`, ...) and children (nodes or texts). */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Returns a labelled control. */
function labelled(text, control) {
  return element("label", {}, text, control);
}

/** Returns a select of [value, text] pairs; `chosen(value)` is called on each change. */
function select(options, chosen, first) {
  const made = element("select");
  for (const [value, text] of options) made.append(element("option", { value }, text));
  if (first !== undefined && first !== null) made.value = first;
  made.addEventListener("change", () => chosen(made.value));
  return made;
}

/** Returns a condition as text: "need: advice · distress: 4". */
function conditionText(condition) {
  return Object.entries(condition).map(([name, value]) => `${name}: ${value}`).join(" · ");
}

/** Returns a list of turns, [role, text] each; the first `given` precede the played ones. */
function dialogueList(turns, given = 0) {
  const list = element("ol", { class: "dialogue" });
  turns.forEach(([role, text], i) => {
    const said = text === ""
      ? element("span", { class: "silence" }, "(leaves without a word)")
      : document.createTextNode(text);
    const kind = `${role === "policy" ? "policy" : "user"}${i < given ? " given" : ""}`;
    list.append(element("li", { class: kind }, element("span", { class: "who" }, role), said));
  });
  return list;
}

function shown(value, digits = 3) {
  return value === null || value === undefined ? "n/a" : value.toFixed(digits);
}
