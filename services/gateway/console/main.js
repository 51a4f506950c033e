// Connects the parts of the page. If the service needs a token, the page asks for one and repeats the request.

import { Service, ServiceError, asServiceError } from "./api.js";
import { byId, setText } from "./dom.js";
import { FieldError, Form } from "./form.js";
import { Health } from "./health.js";
import { Results, failure } from "./results.js";

const TOKEN_KEY = "synod.token"; // in sessionStorage, which ends with the tab
const service = new Service();
const form = new Form();
const results = new Results();
const health = new Health(service);
let limits = {};
let stop = new AbortController();

service.token = sessionStorage.getItem(TOKEN_KEY) ?? "";
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
    form.showCatalogue(catalogue);
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
    return showFieldError(error);
  }
  setBusy(true);
  stop = new AbortController();
  results.begin(form.asked, form.ensemble, form.files);
  try {
    await withToken(() => service.score(request, limits.max_body_bytes, (part) => results.part(part), stop.signal));
    results.end();
  } catch (error) {
    results.end(asServiceError(error));
  }
  setBusy(false);
  health.poll();
}

/** Runs `action`, and again with another token for as long as the service refuses the token. */
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
  setText(byId("token-why"), why);
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
      reject(new ServiceError("stopped", "no token was entered"));
    }, options);
    byId("token-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const token = byId("token").value.trim();
      if (!/^[\x21-\x7e]+$/.test(token)) return setText(byId("token-why"), "A token must be one word of ASCII letters, digits and punctuation.");
      byId("token").value = "";
      close();
      useToken(token);
      resolve();
    }, options);
  });
}

function useToken(token) {
  service.token = token;
  if (token) sessionStorage.setItem(TOKEN_KEY, token);
  else sessionStorage.removeItem(TOKEN_KEY);
  byId("forget-token").hidden = !token;
  health.poll({ newToken: true });
}

function setBusy(busy) {
  const stopHadFocus = document.activeElement === byId("stop");
  byId("stop").hidden = !busy;
  byId("score").ariaDisabled = String(busy);
  if (stopHadFocus && !busy) byId("score").focus();
}

function showFieldError(error) {
  if (!(error instanceof FieldError)) return byId("failure").replaceChildren(...failure("unreadable_file", error.message));
  error.field?.setAttribute("aria-invalid", "true");
  error.field?.focus();
  const shown = error.field && byId(`${error.field.id}-error`);
  if (shown) {
    shown.hidden = false;
    setText(shown, error.message);
  }
  byId("failure").textContent = error.message;
}

function clearFieldErrors() {
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  byId("geneval-error").hidden = true;
  byId("failure").replaceChildren();
}
