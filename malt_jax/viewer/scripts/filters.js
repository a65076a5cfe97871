// Which questions a list shows, and in which order.

const FILTERS = {
  trees: {
    gained: ["became correct", "Most first answers are incorrect, most last ones correct"],
    lost: ["became incorrect", "Most first answers are correct, most last ones incorrect"],
    disputed: ["disputed siblings", "Siblings lie on both sides of the threshold"],
    unparseable: ["unparseable", "A last answer could not be found in the text"],
    cut: ["cut off", "A completion reached the limit of tokens"],
  },
  test: {
    gained: ["became correct", "Most answers are incorrect before training, and correct after it"],
    lost: ["became incorrect", "Most answers are correct before training, and incorrect after it"],
    disputed: ["disputed passes", "Passes of one policy give both correct and incorrect answers"],
    unparseable: ["unparseable", "A last answer could not be found in the text"],
    cut: ["cut off", "A completion reached the limit of tokens"],
  },
};

const SORTS = {
  order: ["order of asking", null],
  spread: ["largest spread", (a, b) => b.spread - a.spread],
  low: ["least correct", (a, b) => a.value - b.value],
  high: ["most correct", (a, b) => b.value - a.value],
  longest: ["longest", (a, b) => b.tokens - a.tokens],
};

const freshState = () => ({ round: 0, show: [], sort: "order", search: "", groups: Object.create(null) });
const states = { trees: freshState(), test: freshState() };
const MOST_GROUPS = 60;

const searched = (entry) => (entry.searched ??= `#${entry.id} ${entry.text} ${entry.reference}`.toLowerCase());

function chosen(kind) {
  const state = states[kind];
  const needle = state.search.trim().toLowerCase();
  const groups = Object.entries(state.groups);
  const found = entriesOf(kind, state.round).filter((entry) =>
    state.show.every((name) => entry[name]) &&
    groups.every(([name, value]) => entry.groups[name] === value) &&
    (!needle || searched(entry).includes(needle)));
  const order = SORTS[state.sort]?.[1];
  return order ? found.sort(order) : found;
}

// The values of every field that has more than one and not too many: subject, level.
function groupsOf(kind) {
  const found = new Map();
  for (const entry of entriesOf(kind, states[kind].round)) {
    for (const [name, value] of Object.entries(entry.groups)) {
      if (!found.has(name)) found.set(name, new Set());
      found.get(name).add(value);
    }
  }
  const most = Math.min(MOST_GROUPS, entriesOf(kind, states[kind].round).length / 2);
  return [...found].filter(([, values]) => values.size > 1 && values.size <= most)
    .map(([name, values]) => [name, [...values].sort((a, b) => a.localeCompare(b, "en", { numeric: true }))]);
}

function stateToQuery(kind) {
  const state = states[kind];
  const query = new URLSearchParams();
  if (state.round) query.set("round", state.round);
  if (state.show.length) query.set("show", state.show.join(","));
  if (state.sort !== "order") query.set("sort", state.sort);
  if (state.search) query.set("search", state.search);
  for (const [name, value] of Object.entries(state.groups)) query.append("group", `${name}:${value}`);
  return query.size ? `?${query}` : "";
}

function stateFromQuery(kind, query) {
  const state = freshState();
  const values = new URLSearchParams(query);
  state.round = Math.min(Math.max(0, Number(values.get("round")) || 0), Math.max(0, index.rounds.length - 1));
  state.show = (values.get("show") ?? "").split(",").filter((name) => Object.hasOwn(FILTERS[kind], name));
  state.sort = Object.hasOwn(SORTS, values.get("sort") ?? "") ? values.get("sort") : "order";
  state.search = values.get("search") ?? "";
  for (const group of values.getAll("group")) {
    const at = group.indexOf(":");
    if (at > 0) state.groups[group.slice(0, at)] = group.slice(at + 1);
  }
  states[kind] = state;
}
