// The form: the catalogue gives the choices, the selected scorers decide the fields, the fields become one item.

import { byId, el } from "./dom.js";
import { Images, base64 } from "./images.js";

const GENEVAL_EXAMPLE = `{"tag": "position", "include": [
  {"class": "cup", "count": 1},
  {"class": "ball", "count": 1, "color": "red",
   "position": ["left of", 0]}
]}`;
const DEFAULT_NEEDS = ["image", "prompt"]; // scorers that need only these are selected at first

/** A field whose content is not valid. */
export class FieldError extends Error {
  constructor(field, message) {
    super(message);
    this.field = field;
  }
}

export class Form {
  #catalogue = { scorers: [], ensembles: {}, limits: {} };
  #images = new Images(fieldOf("image"));
  #references = new Images(fieldOf("references"));

  constructor() {
    byId("scorers").addEventListener("change", () => this.#show());
    for (const id of ["ensemble", "kind"]) byId(id).addEventListener("change", () => this.#show());
    byId("add-segment").addEventListener("click", () => addSegment().querySelector("input[type=text]").focus());
    byId("geneval").placeholder = GENEVAL_EXAMPLE;
    byId("geneval-example").addEventListener("click", () => {
      byId("geneval").value = GENEVAL_EXAMPLE;
      byId("geneval").focus();
    });
    document.addEventListener("paste", (event) => {
      const pasted = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
      if (pasted.length) this.#images.add(pasted);
    });
    addSegment();
  }

  /** Shows the scorers and rewards that the service has. */
  showCatalogue(catalogue) {
    this.#catalogue = catalogue;
    byId("scorers").querySelector(".choices").replaceChildren(...catalogue.scorers.map(choice));
    const names = Object.keys(catalogue.ensembles);
    byId("ensemble").append(...names.map((name) => el("option", { value: name }, name)));
    byId("ensemble-field").hidden = names.length === 0;
    this.#show();
  }

  /** The selected scorers, in the service's order. */
  get chosen() {
    return [...byId("scorers").querySelectorAll("input:checked")].map((input) => input.value);
  }

  get ensemble() {
    return byId("ensemble").value || null;
  }

  /** The scorers whose outcome is expected: the selected ones and those with a weight above 0 in the reward. */
  get asked() {
    const names = new Set([...this.chosen, ...Object.keys(this.#weights()).filter((name) => this.#weights()[name] > 0)]);
    return this.#catalogue.scorers.filter((scorer) => names.has(scorer.name));
  }

  get files() {
    return { image: this.#images.files[0] ?? null, references: this.#shown("references") ? this.#references.files : [] };
  }

  /** Builds the body of POST /v1/score. Throws FieldError for a field that is not valid. */
  async request() {
    if (!this.chosen.length && !this.ensemble) {
      throw new FieldError(byId("scorers").querySelector("input"), "Select a scorer or a reward.");
    }
    const { image, references } = this.files;
    const fields = {
      image: image && (await base64(image)),
      prompt: this.#shown("prompt") && byId("prompt").value,
      references: references.length && (await Promise.all(references.map(base64))),
      reasoning: this.#shown("reasoning") && reasoning(),
      geneval: this.#shown("geneval") && geneval(),
      concept: this.#shown("concept") && concept(),
      source_prompt: this.#shown("source_prompt") && byId("source-prompt").value,
    };
    const item = Object.fromEntries(Object.entries(fields).filter(([, value]) => value));
    return { items: [item], scorers: this.chosen, ...(this.ensemble && { ensemble: this.ensemble }) };
  }

  #weights() {
    const { weights = {}, by_kind: kinds = {} } = this.#catalogue.ensembles[this.ensemble] ?? {};
    return kinds[byId("kind").value] ?? weights;
  }

  #shown(need) {
    return !fieldOf(need).hidden;
  }

  /** Shows the fields that the selected scorers need, and names the scorers that use each. */
  #show() {
    const readers = {};
    for (const scorer of this.asked) for (const need of scorer.needs) (readers[need] ??= []).push(scorer.name);
    for (const field of document.querySelectorAll("[data-need]")) {
      const names = readers[field.dataset.need] ?? [];
      const always = field.dataset.need === "image";
      field.hidden = !names.length && !always;
      field.querySelector("[data-readers]").textContent = names.length ? `Used by ${names.join(", ")}.` : "Not used by the selected scorers.";
    }
    const concept = fieldOf("concept");
    concept.hidden = !this.ensemble && !readers.prompt;
    concept.querySelector("[data-readers]").textContent = "The class word replaces the token in prompts; the kind selects the reward's weights; a judge may read the rest.";
    byId("ensemble-note").textContent = this.#ensembleNote();
  }

  #ensembleNote() {
    if (!this.ensemble) return "A reward is a weighted sum of scores.";
    const terms = Object.entries(this.#weights()).filter(([, weight]) => weight > 0);
    if (!terms.length) return "Its weights depend on the concept's kind: select one below.";
    return terms.map(([name, weight]) => `${weight} ${name}`).join(" + ");
  }
}

const fieldOf = (need) => document.querySelector(`[data-need=${need}]`);

function choice(scorer) {
  const checked = scorer.needs.every((need) => DEFAULT_NEEDS.includes(need));
  const input = el("input", { type: "checkbox", value: scorer.name, checked });
  const about = `${scorer.summary} (${scorer.source})`;
  return el("label", { className: "choice" }, input, el("span", {}, el("b", {}, scorer.name), el("small", {}, about)));
}

function addSegment() {
  const number = byId("segments").children.length + 1;
  const remove = el("button", { type: "button", className: "quiet", ariaLabel: `Remove segment ${number}` }, "✕");
  const row = el(
    "li",
    {},
    el("input", { type: "checkbox", ariaLabel: `Segment ${number} is true` }),
    el("input", { type: "text", ariaLabel: `Segment ${number}`, autocomplete: "off" }),
    remove,
  );
  remove.addEventListener("click", () => {
    row.remove();
    byId("add-segment").focus();
  });
  byId("segments").append(row);
  return row;
}

function reasoning() {
  const rows = [...byId("segments").children].map((row) => {
    const [tick, text] = row.querySelectorAll("input");
    return { text: text.value.trim(), truth: tick.checked ? 1 : 0 };
  });
  const filled = rows.filter((row) => row.text);
  const text = byId("reasoning").value;
  if (!text.trim() && !filled.length) return null;
  return { text, segments: filled.map((row) => row.text), truth: filled.map((row) => row.truth) };
}

function geneval() {
  const text = byId("geneval").value.trim();
  if (!text) return null;
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new FieldError(byId("geneval"), `This is not valid JSON: ${error.message}`);
  }
}

function concept() {
  const ids = ["kind", "class-word", "concept-token", "concept-info"];
  const [kind, classWord, token, info] = ids.map((id) => byId(id).value.trim());
  const facts = byId("concept-facts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  if (!kind && (classWord || token || info || facts.length)) {
    throw new FieldError(byId("kind"), "Select the concept's kind, or clear the other fields of the concept.");
  }
  const about = info || facts.length ? { ...(info && { info }), ...(facts.length && { facts }) } : null;
  return kind && { kind, ...(classWord && { class_word: classWord }), ...(token && { token }), ...(about && { about }) };
}
