// The chat page: an ordinary client of /v1. It keeps the app key in this tab only, shows what the guard did, and works
// with a keyboard, a screen reader and a phone. Text from the model is only ever set as text, never as markup.
"use strict";

const KEY = "casemate-key";
const PLACEHOLDER = /\[([A-Z][A-Z0-9_]{0,63})_[0-9a-f]{4,16}\]/g;

// What the guard's labels mean to a person. Anything else is shown as the label itself.
const NAMES = {
  "pii:EMAIL_ADDRESS": "e-mail address",
  "pii:PHONE_NUMBER": "phone number",
  "pii:CREDIT_CARD": "card number",
  "pii:IBAN_CODE": "bank account number",
  "pii:IP_ADDRESS": "IP address",
  "pii:US_SSN": "social security number",
  "secret:private-key": "private key",
  "secret:jwt": "access token",
  "secret:password": "password",
  "secret:url-credentials": "password in a link",
  canary: "it began to give away the device's own instructions",
  "system-overlap": "it began to repeat the device's own instructions",
  "guard-error": "the guard could not check it",
  cap: "it held something that never ended and could not be checked",
  injection: "an attempt to override the instructions",
  hidden: "characters that hide text",
  role: "text that pretends to be another speaker",
  "over-budget": "it took too long to check",
};

const $ = (id) => document.getElementById(id);
const ui = Object.fromEntries(
  ["gate", "key", "key-error", "tools", "model", "fresh", "forget", "talk", "empty", "composer", "message", "send", "stop", "status"].map(
    (id) => [id, $(id)],
  ),
);

let history = [];
let running = null;

// --- words

function name(label) {
  if (NAMES[label]) return NAMES[label];
  const family = label.split(":")[0];
  if (family === "pii" || family === "secret") return label.split(":")[1].replace(/[_-]+/g, " ").toLowerCase();
  if (family === "block") return `it held ${name(label.slice(6))}`;
  return NAMES[family] || label;
}

function sentence(items) {
  const unique = [...new Set(items)];
  return unique.length < 2 ? unique.join("") : `${unique.slice(0, -1).join(", ")} and ${unique[unique.length - 1]}`;
}

function counted(found) {
  return sentence(Object.entries(found).map(([label, count]) => (count > 1 ? `${count} × ${name(label)}` : name(label))));
}

// --- elements, always from text

function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function note(kind, title, text, detail) {
  const made = element("p", `note ${kind}`, element("strong", "", title), text);
  if (detail) made.append(element("small", "", detail));
  return made;
}

function addTurn(who, className) {
  ui.empty.hidden = true;
  const text = element("p", "text");
  const turn = element("article", `turn ${className}`, element("h2", "", who), text);
  ui.talk.append(turn);
  return { turn, text };
}

// Placeholders become small marks; a placeholder cut in two by the stream appears once it is whole.
function render(target, text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(PLACEHOLDER)) {
    parts.push(text.slice(end, match.index));
    const label = [`pii:${match[1]}`, `secret:${match[1].toLowerCase().replace(/_/g, "-")}`].find((key) => NAMES[key]);
    parts.push(element("mark", "", `${label ? NAMES[label] : match[1].replace(/_/g, " ").toLowerCase()} removed`));
    end = match.index + match[0].length;
  }
  parts.push(text.slice(end));
  target.replaceChildren(...parts);
}

// --- what a screen reader hears: whole sentences, not tokens

const speaker = {
  said: 0,
  begin() {
    this.said = 0;
  },
  hear(text) {
    const fresh = text.slice(this.said);
    const stop = Math.max(fresh.lastIndexOf(". "), fresh.lastIndexOf("! "), fresh.lastIndexOf("? "), fresh.lastIndexOf("\n"));
    if (stop > 0) this.say(fresh.slice(0, stop + 1), stop + 1);
    else if (fresh.length > 240) this.say(fresh, fresh.length);
  },
  finish(text) {
    this.say(`${text.slice(this.said)} `, 0);
  },
  say(words, length) {
    this.said += length;
    ui.status.textContent = words.replace(PLACEHOLDER, " removed ");
  },
};

function announce(words) {
  ui.status.textContent = words;
}

// --- the scroll follows the answer, unless the reader went up to read

function nearEnd() {
  return window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 120;
}

function follow(wanted) {
  if (wanted) window.scrollTo(0, document.documentElement.scrollHeight);
}

// --- the API

function api(path, options = {}) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(KEY)}`, "content-type": "application/json" };
  return fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
}

async function readError(response) {
  try {
    return await response.json();
  } catch {
    return { error: { code: String(response.status), message: `the device answered ${response.status}` } };
  }
}

async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done || signal.aborted) return;
    held += value;
    const lines = held.split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// --- one answer

class Failure extends Error {
  constructor(body, response) {
    super(body.error.message);
    this.body = body;
    this.retryAfter = response ? response.headers.get("retry-after") : null;
    this.status = response ? response.status : 0;
  }
}

async function ask(words) {
  const mine = addTurn("You", "you");
  mine.text.textContent = words;
  const model = ui.model.value;
  const theirs = addTurn(model, "model busy");
  theirs.turn.setAttribute("aria-busy", "true");
  follow(true);
  const messages = [...history, { role: "user", content: words }];
  running = new AbortController();
  setBusy(true);
  announce(`${model} is answering`);
  speaker.begin();
  const answer = { text: "", extra: {}, reason: null };
  try {
    await receive(answer, theirs, { model, messages, stream: true }, running.signal);
    if (running.signal.aborted) answer.reason = "stopped";
    conclude(answer, theirs, messages);
  } catch (failure) {
    if (failure.name === "AbortError") {
      answer.reason = "stopped";
      conclude(answer, theirs, messages);
    } else {
      fail(failure, answer, theirs, words);
    }
  } finally {
    theirs.turn.classList.remove("busy");
    theirs.turn.removeAttribute("aria-busy");
    running = null;
    setBusy(false);
  }
}

async function receive(answer, theirs, body, signal) {
  const response = await api("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  if (!response.ok) throw new Failure(await readError(response), response);
  for await (const event of events(response, signal)) {
    if (event.error) throw new Failure(event, null);
    Object.assign(answer.extra, event.casemate || {});
    for (const choice of event.choices) {
      answer.reason = choice.finish_reason || answer.reason;
      if (choice.delta.content) {
        const stick = nearEnd();
        answer.text += choice.delta.content;
        render(theirs.text, answer.text);
        speaker.hear(answer.text);
        follow(stick);
      }
    }
  }
}

function conclude(answer, theirs, messages) {
  const stick = nearEnd();
  speaker.finish(answer.text);
  const notes = [];
  if (answer.extra.redacted) {
    notes.push(note("", "Taken out by the guard", `${capital(counted(answer.extra.redacted))}. Removed on the device, before this page saw it.`));
  }
  if (answer.reason === "content_filter") {
    const why = answer.extra.stopped ? name(answer.extra.stopped) : "it was not allowed";
    notes.push(note("stopped", "Answer stopped by the guard", `Because ${why}.`, reference(answer.extra)));
  }
  if (answer.reason === "length") notes.push(note("", "Cut short", "The answer reached its length limit."));
  if (answer.reason === "stopped") notes.push(note("", "Stopped", "You stopped this answer."));
  theirs.turn.append(...notes);
  for (const made of notes) announce(`${ui.status.textContent} ${made.textContent}`);
  if (!notes.length) announce(`${ui.status.textContent} End of answer.`);
  if (answer.text) history = [...messages, { role: "assistant", content: answer.text }];
  follow(stick);
}

function fail(failure, answer, theirs, words) {
  const stick = nearEnd();
  const body = failure.body || { error: { code: "network", message: "" } };
  const code = body.error.code;
  let made;
  if (code === "content_filter") {
    const reasons = (body.casemate && body.casemate.refused) || [];
    const why = reasons.length ? `The guard found ${sentence(reasons.map(name))}.` : "";
    made = note("stopped", "Refused", `${why} Nothing reached the model.`, reference(body.casemate, reasons));
  } else if (code === "invalid_api_key" || code === "too_many_failures") {
    leave("This key no longer works.");
    return;
  } else if (code === "network") {
    made = note("stopped", "No connection", "The device cannot be reached. Is it running?");
  } else {
    const wait = failure.retryAfter ? ` Try again in ${failure.retryAfter} s.` : "";
    const title = failure.status === 429 ? "Please wait" : failure.status === 503 ? "Not available now" : "It did not work";
    made = note("stopped", title, `${capital(body.error.message.replace(/; try again in \d+ s$/, ""))}.${wait}`);
  }
  if (!answer.text) theirs.text.remove();
  theirs.turn.append(made);
  announce(made.textContent);
  if (!answer.text && !ui.message.value) ui.message.value = words;
  follow(stick);
}

function reference(extra, reasons = []) {
  const parts = [...reasons];
  if (extra && extra.request_id) parts.push(extra.request_id);
  return parts.join(" · ");
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

// --- the page

function setBusy(busy) {
  ui.send.hidden = busy;
  ui.stop.hidden = !busy;
  for (const control of [ui.model, ui.fresh, ui.forget]) control.disabled = busy;
}

async function enter(key) {
  sessionStorage.setItem(KEY, key);
  let response;
  try {
    response = await api("/v1/models");
  } catch {
    return leave("The device cannot be reached. Is it running?");
  }
  if (response.status === 401) return leave("This key is not valid on this device.");
  if (!response.ok) return leave(capital((await readError(response)).error.message));
  const models = (await response.json()).data;
  if (!models.length) return leave("No model is ready for this app yet. Try again in a moment.");
  ui.model.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  ui.gate.hidden = true;
  for (const part of [ui.tools, ui.talk, ui.composer]) part.hidden = false;
  ui.message.focus();
  announce("Ready to chat");
}

function leave(why) {
  sessionStorage.removeItem(KEY);
  clear();
  for (const part of [ui.tools, ui.talk, ui.composer]) part.hidden = true;
  ui.gate.hidden = false;
  ui.key.value = "";
  ui["key-error"].textContent = why;
  ui.key.setAttribute("aria-invalid", why ? "true" : "false");
  ui.key.focus();
}

function clear() {
  history = [];
  ui.talk.replaceChildren(ui.empty);
  ui.empty.hidden = false;
}

function submit() {
  const words = ui.message.value.trim();
  if (!words || running) return;
  ui.message.value = "";
  ask(words);
}

ui.gate.addEventListener("submit", (event) => {
  event.preventDefault();
  ui["key-error"].textContent = "";
  enter(ui.key.value.trim());
});
ui.composer.addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
ui.message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    submit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) stopAnswer();
});
ui.stop.addEventListener("click", stopAnswer);
ui.forget.addEventListener("click", () => leave(""));
ui.fresh.addEventListener("click", () => {
  clear();
  ui.message.focus();
  announce("New chat");
});

function stopAnswer() {
  if (running) running.abort();
  ui.message.focus();
}

if (sessionStorage.getItem(KEY)) enter(sessionStorage.getItem(KEY));
else ui.key.focus();
