// Data is gzip-compressed JSON in base64: inside the page, or in scripts next to it.

const packed = new Map();
const waiting = new Map();
const unpacked = new Map();
const MOST_CHUNKS = 8;
let index = null;

for (const element of document.querySelectorAll("script[data-name]")) {
  packed.set(element.dataset.name, element.textContent);
  element.remove();
}

// Called by the scripts of the folder data/.
window.maltData = (name, text) => {
  packed.set(name, text);
  waiting.get(name)?.();
};

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function load(name) {
  return new Promise((resolve, reject) => {
    const script = h("script", { src: `${index.folder}/${encodeURIComponent(name)}.js` });
    const fail = () => reject(new Error(`${index.folder}/${name}.js is missing or damaged; keep the folder ${index.folder}/ next to the page`));
    waiting.set(name, resolve);
    script.onerror = fail;
    script.onload = () => (packed.has(name) ? resolve() : fail());
    document.head.append(script);
  });
}

async function chunk(name) {
  if (!unpacked.has(name)) {
    const inside = packed.has(name);
    if (!inside) await load(name);
    unpacked.set(name, await unpack(packed.get(name)));
    if (!inside) packed.delete(name);
    // The oldest chunk goes; a Map keeps the order of insertion.
    if (unpacked.size > MOST_CHUNKS) unpacked.delete(unpacked.keys().next().value);
  }
  return unpacked.get(name);
}

const content = async (entry) => (await chunk(entry.chunk))[entry.id];
const entriesOf = (kind, round) => (kind === "trees" ? index.rounds[round] ?? [] : index.test);
