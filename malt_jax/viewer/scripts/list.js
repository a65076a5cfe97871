// The list of questions. Only the rows in view are in the document, so its length does not matter.

const ROW = 48;
const MARGIN = 8;
const list = { kind: null, found: [], selected: 0, draw: () => {} };

const address = (kind, entry) => (kind === "trees" ? `#/trees/${entry.round}/${entry.id}` : `#/test/${entry.id}`);

function tags(entry) {
  const names = [["gained", "▲ became correct"], ["lost", "▼ became incorrect"], ["cut", "cut off"], ["unparseable", "unparseable"]];
  return names.filter(([name]) => entry[name]).map(([, text]) => h("span", { class: "chip plain" }, text));
}

function share(entry) {
  const title = entry.shares
    ? `correct: ${entry.shares.map(percent).join(" → ")}`
    : `${percent(entry.value)} of the last answers are correct; spread: how far the values of siblings lie apart, on average`;
  return h("span", { class: "share", title }, h("span", { class: "meter", "--share": entry.value }),
    h("span", { class: "ending" }, entry.shares ? entry.shares.map((s) => (100 * s).toFixed(0)).join(" → ") : `${percent(entry.value)}, spread ${decimal(entry.spread)}`));
}

function rowView(kind, entry, place) {
  return h("a", { class: "row spread", role: "option", href: address(kind, entry), "aria-selected": String(place === list.selected), "aria-posinset": place + 1, "aria-setsize": list.found.length, style: `top:${place * ROW}px`, "--s": entry.spread },
    h("span", { class: "id" }, `#${entry.id}`), share(entry), h("span", { class: "text" }, short(entry.text, 300)), h("span", { class: "tags" }, tags(entry)));
}

function select(place) {
  if (!list.found.length) return;
  list.selected = Math.min(Math.max(place, 0), list.found.length - 1);
  list.draw(true);
}

function filterButtons(kind, change) {
  const state = states[kind];
  return h("div", { class: "filters", role: "group", "aria-label": "Filters" }, Object.entries(FILTERS[kind]).map(([name, [text, title]]) => {
    const toggle = () => { state.show = state.show.includes(name) ? state.show.filter((other) => other !== name) : [...state.show, name]; change(); };
    const count = entriesOf(kind, state.round).reduce((sum, entry) => sum + Boolean(entry[name]), 0);
    return h("button", { type: "button", title, "data-filter": name, "aria-pressed": String(state.show.includes(name)), onclick: toggle }, text, " ", h("span", { class: "count" }, count.toLocaleString("en")));
  }));
}

function choice(text, value, options, change) {
  const control = h("select", { onchange: () => change(control.value) }, options.map(([key, name]) => h("option", { value: key, selected: key === value }, name)));
  return h("label", {}, text, control);
}

function tools(kind, change) {
  const state = states[kind];
  const search = h("input", { type: "search", id: "search", placeholder: "Search questions, answers, #ids", value: state.search, "aria-label": "Search", oninput: () => { state.search = search.value; change(false); } });
  const rounds = index.rounds.map((_, round) => [String(round), String(round)]);
  const groups = groupsOf(kind).map(([name, values]) => choice(name, state.groups[name] ?? "", [["", "all"], ...values.map((value) => [value, value])], (value) => {
    if (value) state.groups[name] = value; else delete state.groups[name];
    change();
  }));
  return h("div", { class: "tools" }, search, groups,
    choice("order", state.sort, Object.entries(SORTS).map(([key, [name]]) => [key, name]), (value) => { state.sort = value; change(); }),
    kind === "trees" && rounds.length > 1 ? choice("round", String(state.round), rounds, (value) => { states[kind] = { ...freshState(), round: Number(value) }; change(); }) : null);
}

function openList(kind, keepSelected = false) {
  const section = document.getElementById("list");
  const space = h("div", { class: "space" });
  const rows = h("div", { class: "rows", role: "listbox", tabindex: 0, "aria-label": "Questions" }, space);
  const count = h("span", { class: "count", role: "status" });
  list.kind = kind;
  list.draw = (reveal) => {
    if (reveal) {
      const top = list.selected * ROW;
      if (top < rows.scrollTop) rows.scrollTop = top;
      else if (top + ROW > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW - rows.clientHeight;
    }
    const first = Math.max(0, Math.floor(rows.scrollTop / ROW) - MARGIN);
    const last = Math.min(list.found.length, Math.ceil((rows.scrollTop + rows.clientHeight) / ROW) + MARGIN);
    space.replaceChildren(...list.found.slice(first, last).map((entry, place) => rowView(kind, entry, first + place)));
  };
  const refresh = () => {
    list.found = chosen(kind);
    const total = entriesOf(kind, states[kind].round).length;
    count.textContent = `${list.found.length.toLocaleString("en")} of ${total.toLocaleString("en")} questions`;
    space.style.height = `${list.found.length * ROW}px`;
    list.draw(false);
    if (!list.found.length) space.replaceChildren(h("p", { class: "empty" }, total ? "No question fits these filters." : "There is nothing here yet."));
  };
  const change = (rebuild = true) => {
    list.selected = 0;
    rows.scrollTop = 0;
    history.replaceState(null, "", `#/${kind}${stateToQuery(kind)}`);
    if (rebuild) build();
    refresh();
  };
  const build = () => {
    const heading = kind === "trees" ? "Training questions and their trees" : "Test questions before and after training";
    section.replaceChildren(h("h1", {}, heading, " ", count), tools(kind, change), filterButtons(kind, change), rows);
  };
  if (!keepSelected) list.selected = 0;
  rows.addEventListener("scroll", () => requestAnimationFrame(() => list.draw(false)));
  build();
  refresh();
  list.draw(true);
}
