"use strict";
/* The rating form: one item at a time, kept in this browser until it is saved to a file. */

class RatingForm {
  constructor(place, task) {
    this.task = task;
    this.at = 0;
    this.place = place;
    const raters = this.kept();
    if (raters.length) this.greet(raters);
    else this.begin();
  }

  /** Returns the ratings stored in this browser, by rater; storage may be disabled. */
  kept() {
    const object = (value) => value !== null && typeof value === "object";
    const read = (name) => {
      try {
        return JSON.parse(localStorage.getItem(name));
      } catch {
        return null;
      }
    };
    let names = [];
    try {
      names = Object.keys(localStorage).filter((name) => name.startsWith(this.name("")));
    } catch { /* nothing is stored */ }
    return names.sort().map(read).filter((one) => object(one) && typeof one.id === "string"
      && typeof one.rater === "string" && object(one.choices) && object(one.comments));
  }

  /** Stores the answers. Each rater has an entry: two tabs never write the same one. */
  keep() {
    try {
      localStorage.setItem(this.name(this.answers.id), JSON.stringify(this.answers));
    } catch { /* it is still in the page */ }
    this.progress.textContent = this.progressText();
  }

  name(id) {
    return `ixjax-rating-${this.task.task}-${id}`;
  }

  /** Asks who rates if the browser holds answers of earlier raters. */
  greet(raters) {
    const goOn = (answers) => this.button(
      `Continue as ${answers.rater || "unnamed rater"} (${this.done(answers)} rated)`,
      () => this.begin(answers));
    this.place.replaceChildren(
      element("h1", {}, "Compare dialogues"),
      element("p", {}, "This browser stores earlier ratings. Who is rating now?"),
      element("div", { class: "actions" },
        ...raters.map(goOn), this.button("Another rater", () => this.begin())));
  }

  begin(answers) {
    const id = `${Date.now()}-${Math.random()}`;
    this.answers = answers ?? { id, rater: "", choices: {}, comments: {} };
    this.draw();
  }

  done(answers) {
    return Object.keys(answers.choices).length;
  }

  button(text, action, attributes = {}) {
    const made = element("button", { type: "button", ...attributes }, text);
    made.addEventListener("click", action);
    return made;
  }

  progressText() {
    const count = this.task.items.length;
    return `Item ${this.at + 1} of ${count}; ${this.done(this.answers)} rated.`;
  }

  draw() {
    const item = this.task.items[this.at];
    const rater = this.rater = element("input", { type: "text", autocomplete: "off" });
    rater.value = this.answers.rater;
    rater.addEventListener("input", () => { this.answers.rater = rater.value; this.keep(); });
    this.progress = element("p", { class: "status", role: "status" }, this.progressText());
    const side = (name) => element("article", { "aria-label": `Dialogue ${name}` },
      element("h2", {}, name), dialogueList(item[name]));
    this.place.replaceChildren(
      element("h1", {}, "Compare dialogues"),
      element("div", { class: "controls" }, labelled("Your name or number", rater)),
      this.progress,
      element("p", { class: "condition" }, `The user: ${conditionText(item.condition)}`),
      element("div", { class: "sides" }, side("A"), side("B")),
      this.question(item), this.comment(item), this.actions());
  }

  question(item) {
    const options = [["A", "A"], ["tie", "no difference"], ["B", "B"]].map(([value, text]) => {
      const input = element("input", { type: "radio", name: "choice", value });
      input.checked = this.answers.choices[item.id] === value;
      input.addEventListener("change", () => { this.answers.choices[item.id] = value; this.keep(); });
      return element("label", {}, input, text);
    });
    return element("fieldset", {}, element("legend", {}, this.task.question), ...options);
  }

  comment(item) {
    const text = element("textarea", { rows: "2" });
    text.value = this.answers.comments[item.id] ?? "";
    text.addEventListener("input", () => { this.answers.comments[item.id] = text.value; this.keep(); });
    return element("div", { class: "controls" }, labelled("Comment (optional)", text));
  }

  actions() {
    const last = this.task.items.length - 1;
    return element("div", { class: "actions" },
      this.button("Back", () => this.go(-1), { disabled: this.at === 0 ? "" : false }),
      this.button("Next", () => this.go(1), { disabled: this.at === last ? "" : false }),
      this.button("Save to a file", () => this.save(), { class: "save" }));
  }

  go(step) {
    this.at += step;
    this.draw();
    scrollTo(0, 0);
  }

  /** Downloads the ratings as a file. */
  save() {
    const { rater, choices, comments } = this.answers;
    if (!rater.trim()) {
      this.progress.textContent = "Enter your name or number first; it identifies your file.";
      this.rater.focus();
      return;
    }
    const { schema, version, task } = this.task;
    const text = JSON.stringify({ schema, version, task, rater, choices, comments }, null, 2);
    const name = rater.trim().replace(/[^\p{L}\p{N}_-]+/gu, "_");
    const link = element("a", { download: `ratings-${name}.json` });
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}

new RatingForm(document.getElementById("form"), dataOf("task"));
