// One test question, answered before training, after SFT and after DPO, side by side.

function lastTraining(names) {
  if (names.every((name) => name === names[0])) return `all roles: ${names[0]}`;
  return names.map((name, depth) => `${index.roles[depth]}: ${name}`).join(", ");
}

function stageView(entry, stage, number) {
  const turns = stage.passes[number] ?? [];
  const texts = {};
  const cards = turns.map((turn) => {
    const made = card(turn, { title: turn.role, prompt: promptOf(turn.role, entry.text, { ...texts }) });
    texts[turn.role] = textOf(turn);
    return made;
  });
  return [h("h2", {}, stage.name, h("span", { class: "ending", title: "the last training of every role" }, lastTraining(stage.training))), cards];
}

function passButtons(stages, state, draw) {
  const count = Math.max(...stages.map((stage) => stage.passes.length));
  const verdicts = (number) => stages.map((stage) => (stage.passes[number]?.at(-1)?.correct ? "✓" : "✗")).join(" ");
  return h("div", { class: "passes", role: "group", "aria-label": "Passes" }, Array.from({ length: count }, (_, number) =>
    h("button", { type: "button", "aria-pressed": String(number === state.number), onclick: () => { state.number = number; draw(); } }, `pass ${number}: ${verdicts(number)}`)));
}

async function openTest(id, number) {
  const entry = index.test.find((other) => other.id === id);
  if (!entry) throw new Error(`There is no test question ${id} here.`);
  const { stages, solution } = await content(entry);
  const state = { number };
  const section = document.getElementById("detail");
  const view = { entry };
  view.draw = () => {
    history.replaceState(null, "", `#/test/${id}/${state.number}`);
    const shares = entry.shares.map((value, place) => h("span", {}, `${stages[place].name} `, valueChip(value, "share of correct answers")));
    section.replaceChildren(crumbs("test", entry, [tokensButton(view.draw)]), questionView(entry, solution),
      h("p", { class: "facts" }, "share of correct answers:", shares), passButtons(stages, state, view.draw),
      h("div", { class: "stages" }, stages.map((stage) => h("div", {}, stageView(entry, stage, state.number)))));
  };
  view.key = (key) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (!step || !stages[0].passes[state.number + step]) return false;
    state.number += step;
    view.draw();
    return true;
  };
  view.draw();
  detail = view;
}
