// The address after # says what is shown: #/, #/trees?FILTERS, #/trees/ROUND/QUESTION/PATH,
// #/test?FILTERS, #/test/QUESTION/PASS.

function show(section, kind) {
  for (const id of ["overview", "list", "detail"]) document.getElementById(id).hidden = id !== section;
  for (const link of document.querySelectorAll(".bar nav a")) {
    if (link.dataset.view === kind) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function failed(kind, error) {
  show("detail", kind);
  document.getElementById("detail").replaceChildren(
    h("p", { class: "note failure", role: "alert" }, `This cannot be shown: ${error.message}`), h("a", { href: `#/${kind}` }, "← list"));
}

async function openDetail(kind, [first, second, third]) {
  show("detail", kind);
  window.scrollTo(0, 0);
  detail = null;
  try {
    if (kind === "trees") await openTree(Number(first), Number(second), third ?? "");
    else await openTest(Number(first), Number(second) || 0);
    if (list.kind !== kind) { list.kind = kind; list.found = chosen(kind); }
    list.selected = Math.max(0, list.found.indexOf(detail.entry));
  } catch (error) {
    failed(kind, error);
  }
}

async function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind, ...rest] = path.split("/").map(decodeURIComponent);
  if (kind !== "trees" && kind !== "test") {
    detail = null;
    show("overview", "overview");
  } else if (rest.length) {
    if (kind === "trees" && Number(rest[0]) !== states.trees.round) states.trees = { ...freshState(), round: Number(rest[0]) };
    await openDetail(kind, rest);
  } else {
    const same = list.kind === kind && (query ? `?${query}` : "") === stateToQuery(kind);
    if (query || !same) stateFromQuery(kind, query);
    detail = null;
    show("list", kind);
    openList(kind, same);
  }
}

// A heading of the overview is no view: its link may scroll there.
window.addEventListener("hashchange", () => { if (!location.hash || location.hash.startsWith("#/")) route(); });
