// The tree of a question as SVG: a column a role, a row a leaf.

const COLUMN = 122;
const LINE = 21;
const NODE = { width: 78, height: 17 };
const TOP = 22;

const parentOf = (path) => path.slice(0, Math.max(0, path.lastIndexOf(".")));
const depthOf = (path) => path.split(".").length;
const byBranches = (a, b) => {
  const [x, y] = [a, b].map((path) => path.split(".").map(Number));
  const place = x.findIndex((branch, depth) => branch !== y[depth]);
  return place < 0 ? x.length - y.length : x[place] - (y[place] ?? -1);
};

// Children by parent ("" above the first role), and every path with its position.
function layout(nodes) {
  const children = new Map();
  for (const path of Object.keys(nodes).sort(byBranches)) {
    const parent = parentOf(path);
    children.set(parent, [...(children.get(parent) ?? []), path]);
  }
  const places = new Map();
  let line = 0;
  const place = (path) => {
    const below = children.get(path) ?? [];
    const lines = below.map(place);
    const y = lines.length ? (lines[0] + lines.at(-1)) / 2 : line++;
    if (path) places.set(path, { x: (depthOf(path) - 1) * COLUMN + 2, y: TOP + y * LINE });
    return y;
  };
  place("");
  return { children, places, height: TOP + line * LINE + 4 };
}

const short = (text, length) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);

function label(node, leaf) {
  const answer = node.answer === null ? "?" : short(node.answer, leaf ? 9 : 6);
  return leaf ? `${node.correct ? "✓" : "✗"} ${answer}` : `${decimal(node.value)} ${node.answer === null ? "" : answer}`;
}

const marksOf = (node) => `${node.sft ? "●" : ""}${node.over.length ? "▲" : ""}${node.under.length ? "▼" : ""}`;

function described(path, node, leaf) {
  const words = [`${node.role} ${path}`, leaf ? (node.correct ? "correct" : "incorrect") : `value ${decimal(node.value)}`];
  if (node.answer !== null) words.push(`answer ${node.answer}`);
  if (node.sft) words.push("row for SFT");
  if (node.over.length) words.push("chosen");
  if (node.under.length) words.push("rejected");
  return words.join(", ");
}

function nodeView(path, node, { x, y }, leaf, select) {
  const attributes = { class: "node tint", role: "treeitem", tabindex: -1, "data-path": path, "aria-level": depthOf(path), "aria-label": described(path, node, leaf), "--v": node.value, onclick: () => select(path) };
  return svg("g", attributes,
    svg("title", {}, described(path, node, leaf)),
    svg("rect", { x, y, width: NODE.width, height: NODE.height, rx: leaf ? 2 : 8 }),
    svg("text", { x: x + 7, y: y + 12.5 }, label(node, leaf)),
    svg("text", { class: "mark", x: x + NODE.width + 3, y: y + 12.5 }, marksOf(node)));
}

// The element, and show(path), which marks a path.
function treeView(nodes, roles, select) {
  const { children, places, height } = layout(nodes);
  const edges = new Map();
  const views = new Map();
  for (const [path, at] of places) {
    const from = places.get(parentOf(path));
    if (from) {
      const [x1, y1, x2, y2] = [from.x + NODE.width, from.y + NODE.height / 2, at.x, at.y + NODE.height / 2];
      edges.set(path, svg("path", { class: "edge", d: `M${x1} ${y1}C${x1 + 24} ${y1} ${x2 - 22} ${y2} ${x2} ${y2}` }));
    }
    views.set(path, nodeView(path, nodes[path], at, depthOf(path) === roles.length, select));
  }
  const heads = roles.map((role, depth) => svg("text", { class: "depth", x: depth * COLUMN + 4, y: 13 }, short(role, 16)));
  const width = (roles.length - 1) * COLUMN + NODE.width + 34;
  const element = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "tree", "aria-label": "Answers, by role" }, heads, [...edges.values()], [...views.values()]);
  const show = (selected, steps) => {
    for (const [path, view] of views) {
      view.classList.toggle("on", steps.includes(path));
      view.setAttribute("aria-selected", String(path === selected));
      view.setAttribute("tabindex", path === selected ? 0 : -1);
      edges.get(path)?.classList.toggle("on", steps.includes(path));
    }
    views.get(selected)?.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  return { element, children, show, focus: (path) => views.get(path)?.focus({ preventScroll: true }) };
}

const LEGEND = () => h("p", { class: "marks" },
  h("span", {}, "value 0", h("i", { class: "scale" }), "1"),
  h("span", {}, h("b", {}, "●"), " row for SFT"), h("span", {}, h("b", {}, "▲"), " chosen"), h("span", {}, h("b", {}, "▼"), " rejected"));
