// The difference of two texts, word by word: the longest common subsequence.

const LARGEST_TABLE = 4e6;

const words = (text) => text.match(/\s+|\w+|[^\s\w]/gu) ?? [];

function lengths(a, b) {
  const width = b.length + 1;
  const table = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      table[i * width + j] = a[i] === b[j]
        ? table[(i + 1) * width + j + 1] + 1
        : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  return (i, j) => table[i * width + j];
}

// [kind, text] pieces in reading order; kind is "same", "del" (only in a) or "ins" (only in b).
function differences(first, second) {
  const [a, b] = [words(first), words(second)];
  const pieces = [];
  const put = (kind, word) => {
    const last = pieces.at(-1);
    if (last?.[0] === kind) last[1] += word;
    else pieces.push([kind, word]);
  };
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) put("same", a[start++]);
  const [x, y] = [a.slice(start), b.slice(start)];
  const common = x.length * y.length <= LARGEST_TABLE ? lengths(x, y) : () => 0;
  let [i, j] = [0, 0];
  while (i < x.length || j < y.length) {
    if (i < x.length && j < y.length && x[i] === y[j]) { put("same", x[i++]); j++; }
    else if (j === y.length || (i < x.length && common(i + 1, j) >= common(i, j + 1))) put("del", x[i++]);
    else put("ins", y[j++]);
  }
  return pieces;
}

function diffView(first, second) {
  if (first === second) return "The texts are equal.";
  return differences(first, second).map(([kind, text]) => (kind === "same" ? text : h(kind, {}, text)));
}
