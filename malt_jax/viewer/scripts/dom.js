// Elements are made from text, never from HTML, so nothing that a model wrote becomes markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const decimal = (value) => value.toFixed(2);

// A value between 0 and 1 on the colours from orange to blue.
function valueChip(value, title) {
  return h("span", { class: "chip value tint", "--v": value, title }, decimal(value));
}
