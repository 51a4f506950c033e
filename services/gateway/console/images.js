// An image field: selected, dropped or pasted files, each with a thumbnail and a button that removes it.

import { el } from "./dom.js";

export class Images {
  files = [];

  /** `field` contains a file input, a hint and a list; an input that is not `multiple` keeps one file. */
  constructor(field) {
    this.input = field.querySelector("input[type=file]");
    this.list = field.querySelector(".files");
    this.drop = field.querySelector(".drop");
    this.input.addEventListener("change", () => {
      this.add(this.input.files);
      this.input.value = ""; // so that the same file can be chosen again
    });
    for (const kind of ["dragover", "dragleave", "drop"]) this.drop.addEventListener(kind, (event) => this.#drag(event));
  }

  add(files) {
    this.files = this.input.multiple ? [...this.files, ...files] : [...this.files, ...files].slice(-1);
    this.#draw();
  }

  #drag(event) {
    event.preventDefault();
    this.drop.classList.toggle("over", event.type === "dragover");
    if (event.type === "drop") this.add(event.dataTransfer.files);
  }

  #draw() {
    for (const shown of this.list.querySelectorAll("img")) URL.revokeObjectURL(shown.src);
    this.list.replaceChildren(...this.files.map((file) => this.#row(file)));
  }

  #row(file) {
    const remove = el("button", { type: "button", className: "quiet", ariaLabel: `Remove ${file.name}` }, "✕");
    remove.addEventListener("click", () => {
      this.files = this.files.filter((other) => other !== file);
      this.#draw();
      this.input.focus();
    });
    const thumbnail = el("img", { src: URL.createObjectURL(file), alt: "", width: 40, height: 40 });
    const size = el("span", { className: "note" }, `${Math.ceil(file.size / 1024)} KiB`);
    thumbnail.addEventListener("error", () => (size.textContent += ", no preview"));
    return el("li", {}, thumbnail, el("span", { className: "name" }, file.name), size, remove);
  }
}

/** A file's bytes in base64. */
export async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}
