"use strict";
/* Dialogues of two methods with the same user, side by side. */

class SideBySide {
  constructor(place, data) {
    this.data = data;
    this.place = element("div");
    place.append(this.place);
    this.showRun(0);
  }

  showRun(i) {
    this.run = this.data.runs[i];
    this.runPlace = i;
    const { user, methods } = this.run.first;
    const users = Object.keys(this.run.users);
    this.user = users.includes(user) ? user : users[0];
    this.methods = [...methods];
    this.condition = 0;
    this.draw();
  }

  draw() {
    const { run } = this;
    const runs = this.data.runs.map((one, i) => [String(i), one.name]);
    const pick = (name, options, chosen, now) => {
      const made = select(options, (value) => { chosen(value); this.draw(); this.focus(name); }, now);
      made.dataset.select = name;
      return made;
    };
    const methods = Object.entries(run.methods);
    const side = (i) => pick(`method-${i}`, methods, (value) => { this.methods[i] = value; }, this.methods[i]);
    const conditions = run.conditions.map((one, i) => [String(i), one.id]);
    this.place.replaceChildren(
      element("div", { class: "controls" },
        ...(runs.length > 1
          ? [labelled("Run", pick("run", runs, (i) => this.showRun(Number(i)), String(this.runPlace)))]
          : []),
        labelled("Condition", pick("condition", conditions, (i) => { this.condition = Number(i); }, String(this.condition))),
        labelled("User", pick("user", Object.entries(run.users), (value) => { this.user = value; }, this.user)),
        labelled("Left", side(0)), labelled("Right", side(1))),
      element("p", { class: "condition" }, conditionText(run.conditions[this.condition].condition)),
      element("div", { class: "sides" }, ...this.methods.map((method) => this.side(method))));
  }

  focus(name) {
    this.place.querySelector(`[data-select="${name}"]`)?.focus();
  }

  side(method) {
    const id = this.run.conditions[this.condition].id;
    const found = (this.run.played[this.user]?.[method] ?? []).find((one) => one.id === id);
    const title = element("h3", {}, this.run.methods[method] ?? String(method));
    if (!found) return element("article", {}, title, element("p", { class: "status" }, "not played"));
    const facts = [`engagement ${shown(found.engagement)}`, `outcome ${shown(found.value, 2)}`];
    if (!found.ended) facts.push("cut at the turn limit");
    return element("article", {}, title,
      element("p", { class: "status" }, facts.join(", ")),
      dialogueList(found.turns, found.given));
  }
}

for (const place of document.querySelectorAll('[data-widget="dialogues"]')) {
  new SideBySide(place, dataOf("dialogues"));
}
