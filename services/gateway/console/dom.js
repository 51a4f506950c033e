// Creates elements from properties and text; no string is parsed as markup.

export const byId = (id) => document.getElementById(id);

/** Creates an element. Keys of `props` that name a property are set as properties, others as attributes; null is skipped. */
export function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** Sets the text only if it differs, so that a live region does not announce the same text twice. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Formats a number with three decimals, or with two digits if those would be zeros. */
export function number(value) {
  if (!Number.isFinite(value)) return "–";
  return value !== 0 && Math.abs(value) < 0.0005 ? value.toExponential(1) : value.toFixed(3);
}
