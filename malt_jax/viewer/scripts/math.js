// Text with its formulas rendered by KaTeX.

// A single dollar opens a formula if no blank follows, and closes it if no blank stands before and
// no digit after, as in Pandoc: "from $5 to $10" is no formula.
const FORMULA = /\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|(?<![\\$\w])\$(?![\s$])((?:[^$\n\\]|\\.)+?)(?<!\s)\$(?!\d)/g;
const LONGEST_FORMULA = 2000;

function formula(source, display, whole) {
  const element = h(display ? "div" : "span", { class: "formula" });
  try {
    // Without trust there are no links, no images and no HTML; the limits end endless macros.
    katex.render(source, element, { displayMode: display, throwOnError: false, trust: false, strict: "ignore", maxSize: 20, maxExpand: 100 });
    return element;
  } catch {
    return whole;
  }
}

function withMath(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(FORMULA)) {
    const [whole, dollars, brackets, parentheses, dollar] = match;
    const source = dollars ?? brackets ?? parentheses ?? dollar;
    if (source.length > LONGEST_FORMULA) continue;
    const display = (dollars ?? brackets) !== undefined;
    parts.push(text.slice(end, match.index));
    parts.push(formula(source, display, whole));
    end = match.index + whole.length;
    // A displayed formula ends its line by itself.
    if (display) end += text.slice(end).match(/^ *\n?/)[0].length;
  }
  parts.push(text.slice(end));
  return parts;
}
