// Passkeys, confirmations, the menu of a phone and the theme. Pages work without it, but for the passkeys, which need it.
const text = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
const bytes = (value) => Uint8Array.from(atob(value.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));

async function post(path, body) {
  const answer = await fetch(path, {
    method: "POST", credentials: "same-origin",
    headers: { "content-type": "application/json", "x-csrf-token": document.querySelector("[name=csrf]")?.value ?? "" },
    body: JSON.stringify(body ?? {}),
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail ?? told.title ?? "the server refused");
  return told;
}

function created(credential) {
  const { clientDataJSON, attestationObject } = credential.response;
  return { id: credential.id, rawId: text(credential.rawId), type: credential.type, clientExtensionResults: {},
    response: { clientDataJSON: text(clientDataJSON), attestationObject: text(attestationObject) } };
}

function shown(credential) {
  const { clientDataJSON, authenticatorData, signature, userHandle } = credential.response;
  return { id: credential.id, rawId: text(credential.rawId), type: credential.type, clientExtensionResults: {},
    response: { clientDataJSON: text(clientDataJSON), authenticatorData: text(authenticatorData), signature: text(signature),
      userHandle: userHandle ? text(userHandle) : null } };
}

async function ceremony(form) {
  const { options, next } = await post(form.dataset.begin);
  if (!options) return location.assign(next);
  options.challenge = bytes(options.challenge);
  const known = (list) => (list ?? []).map((one) => ({ ...one, id: bytes(one.id) }));
  let answer;
  if (form.dataset.passkey === "create") {
    options.user.id = bytes(options.user.id);
    options.excludeCredentials = known(options.excludeCredentials);
    answer = created(await navigator.credentials.create({ publicKey: options }));
  } else {
    options.allowCredentials = known(options.allowCredentials);
    answer = shown(await navigator.credentials.get({ publicKey: options }));
  }
  const name = form.querySelector("[name=passkey_name]")?.value ?? "";
  const told = await post(form.dataset.finish, { answer, name });
  location.assign(told.next);
}

async function copy(button) {
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent.trim());
  document.getElementById("said").textContent = "Copied";
  button.textContent = "Copied";
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (!form.dataset.passkey) return;
  event.preventDefault();
  const problem = form.querySelector("[role=alert]");
  const button = form.querySelector("button");
  problem.hidden = true;
  button.disabled = true;
  ceremony(form).catch((error) => {
    problem.textContent = error.name === "NotAllowedError" ? "The passkey was not used. Try again when you are ready." : error.message;
    problem.hidden = false;
    button.disabled = false;
  });
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.opens) document.getElementById(button.dataset.opens).showModal();
  if (button?.dataset.closes !== undefined) button.closest("dialog").close();
  if (button?.dataset.menu !== undefined) button.ariaExpanded = button.closest(".side").classList.toggle("open");
  if (button?.dataset.copies) copy(button);
  if (button?.dataset.theme !== undefined) {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    localStorage.setItem("theme", document.documentElement.dataset.theme);
    dispatchEvent(new Event("themechange"));
  }
});

// A page that changes by itself waits while somebody is deciding.
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target.querySelector("dialog[open]")) event.detail.shouldSwap = false;
});
