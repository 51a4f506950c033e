// The results: one card for each scorer, filled when its outcome arrives; boxes over the images; the reward.

import { AnnotatedImage, boxesOf } from "./boxes.js";
import { byId, el, number, setText } from "./dom.js";
import { describe } from "./messages.js";

export class Results {
  #cards = new Map();
  #images = [];

  /** Clears the results and shows a waiting card for each expected outcome; `asked` are scorers of the catalogue. */
  begin(asked, ensemble, { image, references }) {
    for (const image of this.#images) image.close();
    this.#images = [image && new AnnotatedImage(image, "Image"), ...references.map((file, i) => new AnnotatedImage(file, `Reference ${i + 1}`))];
    const shown = this.#images.filter(Boolean).map((image) => image.element);
    this.#images = this.#images.map((image) => image ?? { draw() {}, close() {} });
    this.#cards = new Map(asked.map((scorer) => [scorer.name, { scorer, element: waiting(scorer.name) }]));
    if (ensemble) this.#cards.set("", { scorer: { name: ensemble }, element: waiting(ensemble, "reward") });
    byId("failure").replaceChildren();
    byId("answer").replaceChildren(
      el("div", { className: "images" }, ...shown),
      el("div", { className: "cards" }, ...[...this.#cards.values()].map((card) => card.element)),
    );
    byId("results").ariaBusy = "true";
    setText(byId("summary"), `Scoring: ${asked.map((scorer) => scorer.name).join(", ")} …`);
  }

  /** Adds a part of the answer. */
  part(part) {
    if (part.scored) this.#outcome(part.scored.scorer, part.scored.outcome);
    else if (part.rewards?.[0]) this.#outcome("", part.rewards[0]);
  }

  /** Ends a request; `error` is set if it failed as a whole. Outcomes that arrived remain. */
  end(error = null) {
    byId("results").ariaBusy = "false";
    for (const card of this.#cards.values()) {
      if (card.element.classList.contains("waiting")) card.element.remove();
    }
    if (error) byId("failure").replaceChildren(...failure(error.code, error.message, error.retryAfterS));
    const said = [...this.#cards.values()].map((card) => card.said).filter(Boolean).join("; "); // in the service's order
    setText(byId("summary"), error ? `${describe(error.code)} ${said}`.trim() : `Done: ${said || "no scores"}.`);
  }

  #outcome(name, outcome) {
    const card = this.#cards.get(name) ?? this.#added(name);
    const reward = name === "";
    const made = outcome.error ? failed(card.scorer, outcome.error, reward) : scored(card.scorer, outcome, reward);
    card.element.replaceWith(made);
    card.element = made;
    card.said = `${card.scorer.name} ${outcome.error ? `failed (${outcome.error.code})` : number(outcome.value)}`;
    if (outcome.error || reward) return;
    const boxes = boxesOf(outcome.detail);
    this.#images[0].draw(boxes.image);
    boxes.references.forEach((found, i) => this.#images[i + 1]?.draw(found));
  }

  #added(name) {
    const card = { scorer: { name }, element: waiting(name) };
    byId("answer").querySelector(".cards").append(card.element);
    this.#cards.set(name, card);
    return card;
  }
}

/** Elements for an error: a sentence, the service's message, and the code. */
export function failure(code, message, retryAfterS = null) {
  const wait = retryAfterS === null ? null : el("p", {}, `Wait ${Math.ceil(retryAfterS)} s before you try again.`);
  return [el("p", { className: "words" }, describe(code)), wait, el("p", { className: "message" }, message), el("code", {}, code)].filter(Boolean);
}

function card(kind, name, label, ...children) {
  return el("article", { className: `card ${kind}` }, el("h3", {}, name, label && el("small", {}, label)), ...children);
}

const waiting = (name, label = null) => card("waiting", name, label, el("p", { className: "note" }, "waiting …"));

function failed({ name }, error, reward) {
  return card("failed", name, reward ? "reward" : null, ...failure(error.code, error.message));
}

function scored({ name, low, high }, { value, detail, origin }, reward) {
  const parts = [el("p", { className: "value", title: String(value) }, number(value))];
  if (Number.isFinite(low) && high > low) parts.push(...meter(name, value, low, high));
  const reasons = reasonsOf(detail ?? {});
  if (reasons.length) parts.push(el("ul", { className: "reasons" }, ...reasons.map((reason) => el("li", {}, reason))));
  if (detail && Object.keys(detail).length) parts.push(more("Detail", el("pre", {}, JSON.stringify(detail, null, 1))));
  if (origin) parts.push(more("Origin", originList(origin)));
  return card(reward ? "reward" : "scored", name, reward ? "reward" : null, ...parts);
}

function meter(name, value, low, high) {
  const fill = el("i");
  fill.style.width = `${100 * Math.min(1, Math.max(0, (value - low) / (high - low)))}%`;
  const bar = el("div", { className: "meter", role: "meter", ariaLabel: name, ariaValueMin: low, ariaValueMax: high, ariaValueNow: value }, fill);
  return [bar, el("p", { className: "range" }, el("span", {}, String(low)), el("span", {}, String(high)))];
}

/** The scorer's reasons for a score; GenEval gives them by rule set. */
function reasonsOf(detail) {
  const said = detail.reasons?.[detail.rule_set] ?? detail.reason ?? [];
  return [said].flat().filter((reason) => typeof reason === "string");
}

function more(title, content) {
  return el("details", {}, el("summary", {}, title), content);
}

function originList({ model, preprocessing, rule_set: ruleSet }) {
  const rows = [["model", model], ["preprocessing", preprocessing], ["rule set", ruleSet]].filter(([, value]) => value);
  return el("dl", {}, ...rows.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}
