// Tokens shaded by their surprise: the stronger the colour, the less likely the model found them.

const MOST_SURPRISE = 400; // -100 times the natural logarithm of 2 %

const textOf = (node) => node.pieces.join("");
const hasTokens = (node) => node.pieces.length === node.costs.length && node.costs.length > 0;

function probability(cost) {
  const value = Math.exp(-cost / 100);
  return value >= 0.995 ? "probability above 99 %" : `probability ${value >= 0.01 ? percent(value) : value.toExponential(0)}`;
}

function tokens(node) {
  return node.pieces.map((piece, place) => {
    const cost = node.costs[place];
    const shade = Math.min(1, cost / MOST_SURPRISE) * 0.75;
    const title = `${probability(cost)}, log-probability ${(-cost / 100).toFixed(2)}`;
    return h("span", { class: piece ? "token" : "token ending", "--cost": shade, title }, piece || "⏎ end");
  });
}

const averageProbability = (node) => Math.exp(-node.costs.reduce((sum, cost) => sum + cost, 0) / node.costs.length / 100);
