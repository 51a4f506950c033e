// Wiring. A refusal for want of a token asks for one and goes on where it was; everything else ends in words.

import { Service, ServiceError, asServiceError } from "./api.js";
import { byId, say } from "./dom.js";
import { FieldError, Form } from "./form.js";
import { Health } from "./health.js";
import { Results, failure } from "./results.js";

const KEPT = "synod.token"; // in sessionStorage: gone with the tab
const service = new Service();
const form = new Form();
const results = new Results();
const health = new Health(service);
let limits = {};
let stop = new AbortController();

service.token = sessionStorage.getItem(KEPT) ?? "";
byId("forget-token").hidden = !service.token;
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  score();
});
byId("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});
byId("stop").addEventListener("click", () => stop.abort());
byId("forget-token").addEventListener("click", () => {
  useToken("");
  byId("score").focus();
});
load();
health.poll();

async function load() {
  try {
    const catalogue = await withToken(() => service.scorers());
    limits = catalogue.limits;
    form.offer(catalogue);
    byId("failure").replaceChildren();
  } catch (error) {
    const again = document.createElement("button");
    again.append("Try again");
    again.addEventListener("click", load);
    const { code, message, retryAfterS } = asServiceError(error);
    byId("failure").replaceChildren(...failure(code, message, retryAfterS), again);
  }
}

async function score() {
  if (!byId("stop").hidden) return;
  clearFieldErrors();
  let request;
  try {
    request = await form.request();
  } catch (error) {
    return fieldError(error);
  }
  busy(true);
  stop = new AbortController();
  results.begin(form.asked, form.ensemble, form.files);
  try {
    await withToken(() => service.score(request, limits.max_body_bytes, (part) => results.part(part), stop.signal));
    results.end();
  } catch (error) {
    results.end(asServiceError(error));
  }
  busy(false);
  health.poll();
}

/** The result of `action`, asked again with another token for as long as the service refuses the one it got. */
async function withToken(action) {
  for (;;) {
    try {
      return await action();
    } catch (error) {
      if (!["unauthenticated", "permission_denied"].includes(error.code)) throw error;
      await askToken(error.message);
    }
  }
}

function askToken(why) {
  const before = document.activeElement;
  say(byId("token-why"), why);
  byId("token-form").hidden = false;
  byId("token").focus();
  return new Promise((resolve, reject) => {
    const ended = new AbortController();
    const close = () => {
      ended.abort();
      byId("token-form").hidden = true;
      before.focus();
    };
    const options = { signal: ended.signal };
    stop.signal.addEventListener("abort", () => {
      close();
      reject(new ServiceError("stopped", "no token was given"));
    }, options);
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = byId("token").value.trim();
      if (!/^[\x21-\x7e]+$/.test(token)) return say(byId("token-why"), "A token is one word of plain letters, digits and signs.");
      byId("token").value = "";
      close();
      useToken(token);
      resolve();
    }, options);
  });
}

function useToken(token) {
  service.token = token;
  if (token) sessionStorage.setItem(KEPT, token);
  else sessionStorage.removeItem(KEPT);
  byId("forget-token").hidden = !token;
  health.poll({ newToken: true });
}

function busy(is) {
  const stopHadFocus = document.activeElement === byId("stop");
  byId("stop").hidden = !is;
  byId("score").ariaDisabled = String(is);
  if (stopHadFocus && !is) byId("score").focus();
}

function fieldError(error) {
  if (!(error instanceof FieldError)) return byId("failure").replaceChildren(...failure("unreadable_file", error.message));
  error.field?.setAttribute("aria-invalid", "true");
  error.field?.focus();
  const shown = error.field && byId(`${error.field.id}-error`);
  if (shown) {
    shown.hidden = false;
    say(shown, error.message);
  }
  byId("failure").textContent = error.message;
}

function clearFieldErrors() {
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  byId("geneval-error").hidden = true;
  byId("failure").replaceChildren();
}
