// One training question: its tree at the left, the texts of a path at the right.

// The view that is open; keys are passed on to it.
let detail = null;

function crumbs(kind, entry, buttons) {
  const link = h("a", { href: location.hash, class: "permalink", title: "Permanent link to this view" }, "link");
  const back = h("a", { href: `#/${kind}${stateToQuery(kind)}` }, "← list");
  return h("div", { class: "crumbs" }, back, h("strong", {}, `question ${entry.id}`), h("span", { class: "grow" }), buttons, link);
}

function siblingsOf(tree, path) {
  return (tree.children.get(parentOf(path)) ?? []).filter((other) => other !== path);
}

// The steps from the first role through a path, and on through first children to a leaf.
function stepsThrough(tree, path) {
  const steps = path.split(".").map((_, depth, branches) => branches.slice(0, depth + 1).join("."));
  while (tree.children.get(steps.at(-1))?.length) steps.push(tree.children.get(steps.at(-1))[0]);
  return steps;
}

function compareView(nodes, path, other) {
  return h("div", { class: "diff" }, h("div", { class: "ending" }, h("del", {}, path), " against ", h("ins", {}, other)), diffView(textOf(nodes[path]), textOf(nodes[other])));
}

function treeCard(view, path, texts) {
  const { entry, nodes, tree, state } = view;
  const node = nodes[path];
  const others = siblingsOf(tree, path);
  const compared = others.includes(state.compared[path]) ? state.compared[path] : "";
  const options = [["", "no sibling"], ...others.map((other) => [other, `${other} (${decimal(nodes[other].value)})`])];
  const compare = others.length ? choice("compare with", compared, options, (value) => { state.compared[path] = value; view.draw(); }) : null;
  const pairs = [["●", node.sft, "row for SFT"], ["▲", node.over.length, `chosen over ${node.over.join(", ")}`], ["▼", node.under.length, `rejected for ${node.under.join(", ")}`]];
  const marks = pairs.filter(([, shown]) => shown).map(([sign, , text]) => h("span", { class: "chip plain" }, `${sign} ${text}`));
  const made = card(node, {
    title: `${node.role} ${path}`,
    prompt: promptOf(node.role, entry.text, texts),
    selected: path === state.path,
    head: [valueChip(node.value, "mean reward of the leaves below"), marks],
    foot: [compare],
    attributes: { "data-path": path },
  });
  if (compared) made.append(compareView(nodes, path, compared));
  return made;
}

async function openTree(round, id, path) {
  const entry = entriesOf("trees", round).find((other) => other.id === id);
  if (!entry) throw new Error(`There is no question ${id} in round ${round}.`);
  const { nodes, solution } = await content(entry);
  const state = { path: Object.hasOwn(nodes, path) ? path : Object.keys(nodes).sort(byBranches)[0], compared: {} };
  const texts = h("div", { class: "path" });
  const section = document.getElementById("detail");
  const view = { entry, nodes, state };
  view.select = (next, focus = true) => {
    if (!Object.hasOwn(nodes, next)) return;
    state.path = next;
    history.replaceState(null, "", `#/trees/${round}/${id}/${next}`);
    view.draw();
    if (focus) view.tree.focus(next);
  };
  view.tree = treeView(nodes, index.roles, view.select);
  view.draw = () => {
    const steps = stepsThrough(view.tree, state.path);
    const before = {};
    view.tree.show(state.path, steps);
    texts.replaceChildren(...steps.map((step) => {
      const made = treeCard(view, step, { ...before });
      before[nodes[step].role] = textOf(nodes[step]);
      return made;
    }));
    section.querySelector(".crumbs")?.replaceWith(crumbs("trees", entry, [tokensButton(view.draw)]));
  };
  view.key = (key) => treeKey(view, key);
  section.replaceChildren(crumbs("trees", entry, []), questionView(entry, solution),
    h("div", { class: "columns" }, h("div", { class: "tree" }, view.tree.element, LEGEND()), texts));
  view.select(state.path, false);
  detail = view;
}

function treeKey(view, key) {
  const { tree, state, nodes } = view;
  const level = Object.keys(nodes).filter((path) => depthOf(path) === depthOf(state.path)).sort(byBranches);
  const place = level.indexOf(state.path);
  if (key === "ArrowLeft") view.select(parentOf(state.path));
  else if (key === "ArrowRight") view.select(tree.children.get(state.path)?.[0] ?? "");
  else if (key === "ArrowUp") view.select(level[place - 1] ?? "");
  else if (key === "ArrowDown") view.select(level[place + 1] ?? "");
  else if (key === "c") {
    const others = ["", ...siblingsOf(tree, state.path)];
    const next = others.indexOf(state.compared[state.path] ?? "") + 1;
    state.compared[state.path] = others[next % others.length];
    view.draw();
  } else return false;
  return true;
}
