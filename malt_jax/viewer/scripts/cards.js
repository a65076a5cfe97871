// One completion: who wrote it, its text, the extracted answer with the verdict, and its prompt.

const settings = { tokens: false, prompt: false };

const SLOT = /\uE000(\w+)\uE001/g;

// The prompt of a role, with the question and the texts of the roles before it in their slots.
function promptOf(role, question, texts) {
  const values = { question, ...texts };
  return (index.prompts[role] ?? "").replace(SLOT, (_, slot) => values[slot] ?? "");
}

function answerChip(node) {
  if (node.answer === null) return h("span", { class: "chip plain" }, "no answer found");
  return h("span", { class: `answer verdict-${node.correct}` }, node.answer);
}

function body(node) {
  const inner = settings.tokens && hasTokens(node) ? tokens(node) : withMath(textOf(node).trimEnd());
  const ending = node.cut ? [h("span", { class: "ending" }, " (cut off at the limit of tokens)")] : [];
  return h("div", { class: "body", dir: "auto" }, inner, ending);
}

function promptView(prompt) {
  return h("details", { open: settings.prompt }, h("summary", {}, "prompt"), h("pre", { dir: "auto" }, prompt));
}

// node: a completion. head: more for the first line. foot: more for the last one.
function card(node, { title, prompt, selected = false, head = [], foot = [], attributes = {} }) {
  const count = node.costs.length;
  const likely = count ? `, ${percent(averageProbability(node))} a token` : "";
  return h(
    "article",
    { class: `card${selected ? " selected" : ""}`, ...attributes },
    h("header", {}, h("strong", {}, title), head, answerChip(node),
      h("span", { class: "ending", title: "tokens, and the geometric mean of their probabilities" }, `${count} tokens${likely}`)),
    body(node),
    h("footer", {}, prompt ? promptView(prompt) : null, foot),
  );
}

function tokensButton(redraw) {
  const toggle = () => { settings.tokens = !settings.tokens; redraw(); };
  const title = "Shade every token by its log-probability (t)";
  return h("button", { type: "button", id: "tokens", "aria-pressed": String(settings.tokens), title, onclick: toggle }, "token probabilities");
}

function questionView(entry, solution) {
  const reference = entry.reference ? ["reference answer ", h("span", { class: "answer" }, entry.reference)] : [];
  const groups = Object.entries(entry.groups).map(([name, value]) => h("span", { class: "chip plain" }, `${name}: ${value}`));
  return h("div", { class: "asked" }, h("div", { class: "body", dir: "auto" }, withMath(entry.text)), h("p", { class: "facts" }, reference, groups),
    solution ? h("details", {}, h("summary", {}, "reference solution"), h("div", { class: "body", dir: "auto" }, withMath(solution))) : null);
}
