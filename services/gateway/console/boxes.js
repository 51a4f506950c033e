// Boxes over an image. A box is [x0, y0, x1, y1] in the image's pixels, as in a score's `detail`.

import { el, svg } from "./dom.js";

/** Returns {image: boxes, references: boxes of each}; a box is {box, label, kind}: GenEval's objects, FER's faces. */
export function boxesOf(detail) {
  const objects = (Array.isArray(detail.objects) ? detail.objects : []).map((found) => ({
    box: found.box,
    label: [found.color, found.class, Number.isFinite(found.score) ? found.score.toFixed(2) : null].filter(Boolean).join(" "),
    kind: "object",
  }));
  const face = (box) => ({ box, label: "face", kind: "face" });
  const references = Array.isArray(detail.reference_boxes) ? detail.reference_boxes : [];
  return {
    image: [...objects, face(detail.box)].filter(isDrawable),
    references: references.map((box) => [face(box)].filter(isDrawable)),
  };
}

const isDrawable = ({ box }) => Array.isArray(box) && box.length === 4 && box.every(Number.isFinite);

/** An image with boxes over it: `draw(boxes)` adds boxes, at once or when the image has loaded. */
export class AnnotatedImage {
  #boxes = [];

  constructor(file, caption) {
    this.#image = el("img", { src: URL.createObjectURL(file), alt: caption });
    this.#overlay = svg("svg", { preserveAspectRatio: "none", "aria-hidden": "true" });
    this.#stage = el("div", { className: "stage" }, this.#image, this.#overlay);
    this.#caption = el("figcaption", {}, caption);
    this.element = el("figure", {}, this.#stage, this.#caption);
    this.#image.addEventListener("load", () => this.#ready());
    this.#image.addEventListener("error", () => this.element.classList.add("broken"));
  }

  #image;
  #overlay;
  #stage;
  #caption;

  draw(boxes) {
    this.#boxes.push(...boxes);
    if (boxes.length) this.#caption.textContent = `${this.#image.alt}: ${this.#boxes.map((one) => one.label).join(", ")}`;
    if (this.#width) for (const one of boxes) this.#draw(one);
  }

  /** Frees the image's memory. */
  close() {
    URL.revokeObjectURL(this.#image.src);
  }

  get #width() {
    return this.#image.naturalWidth;
  }

  #ready() {
    this.#overlay.setAttribute("viewBox", `0 0 ${this.#width} ${this.#image.naturalHeight}`);
    this.element.classList.toggle("small", this.#width <= 256);
    for (const one of this.#boxes) this.#draw(one);
  }

  #draw({ box: [x0, y0, x1, y1], label, kind }) {
    const [x, y, width, height] = [x0, y0, x1 - x0, y1 - y0].map((value) => String(value));
    this.#overlay.append(svg("rect", { x, y, width, height, class: kind }));
    const tag = el("span", { className: `tag ${kind}` }, label);
    const side = x0 > this.#width / 2 ? ["right", 1 - x1 / this.#width] : ["left", x0 / this.#width];
    tag.style[side[0]] = `${Math.max(0, 100 * side[1])}%`;
    tag.style.top = `${Math.max(0, 100 * (y0 / this.#image.naturalHeight))}%`;
    tag.classList.toggle("inside", y0 < 0.08 * this.#image.naturalHeight);
    this.#stage.append(tag);
  }
}
