// Keys, the theme, and the start.

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("malt-theme", root.dataset.theme); } catch { /* forbidden for files */ }
}

function step(by) {
  if (!list.found.length || !list.kind) return;
  const before = list.selected;
  select(list.selected + by);
  if (detail && list.selected !== before) location.hash = address(list.kind, list.found[list.selected]);
}

function togglePrompt() {
  settings.prompt = !settings.prompt;
  const shown = document.querySelector("#detail .card.selected details") ? ".card.selected details" : ".card details";
  for (const element of document.querySelectorAll(`#detail ${shown}`)) element.open = settings.prompt;
}

const help = document.getElementById("help");
const KEYS = {
  j: () => step(1),
  k: () => step(-1),
  d: toggleTheme,
  t: () => document.getElementById("tokens")?.click(),
  p: togglePrompt,
  "/": () => document.getElementById("search")?.focus(),
  "?": () => help.showModal(),
  Enter: () => { if (list.found.length) location.hash = address(list.kind, list.found[list.selected]); },
  Escape: () => { if (detail) location.hash = `#/${list.kind}${stateToQuery(list.kind)}`; },
};

document.addEventListener("keydown", (event) => {
  const target = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (target.matches("input, select, textarea")) {
    if (event.key === "Escape") target.blur();
    return;
  }
  const listed = !document.getElementById("list").hidden;
  if (event.key === "Enter" && (!listed || target.matches("a, button, summary"))) return;
  if (listed && (event.key === "ArrowDown" || event.key === "ArrowUp")) step(event.key === "ArrowDown" ? 1 : -1);
  else if (detail?.key(event.key)) { /* done */ }
  else if (Object.hasOwn(KEYS, event.key) && (listed || detail || "d?".includes(event.key))) KEYS[event.key]();
  else return;
  event.preventDefault();
});

document.getElementById("theme").append("◐");
document.getElementById("theme").addEventListener("click", toggleTheme);
document.getElementById("help-button").addEventListener("click", () => help.showModal());
window.addEventListener("beforeprint", () => {
  for (const element of document.querySelectorAll("#overview details")) element.open = true;
});

unpack(packed.get("index")).then((value) => {
  index = value;
  packed.delete("index");
  document.documentElement.dataset.ready = "true";
  return route();
}).catch((error) => failed("trees", error));
