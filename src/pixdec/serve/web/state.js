// The settings, kept in the page's address; one's own file, kept in the browser, so that a reload brings it back.

// `given`: the names of the files of `pixdec page`, with "/" between them, which no name of a file holds.
export const USUAL = { given: "", example: "", file: "", model: "", prompt: "", scale: "", steps: "", strength: 0, stop: 0, seed: 0, mode: "divider", zoom: "fit", at: 50, lens: "50,50" };

export function fromAddress() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const state = { ...USUAL };
  for (const [name, usual] of Object.entries(USUAL)) {
    if (!(name in given)) continue;
    const value = typeof usual === "number" ? Number(given[name]) : given[name];
    if (typeof usual !== "number" || Number.isFinite(value)) state[name] = value;
  }
  return state;
}

export function toAddress(state) {
  const said = Object.entries(state).filter(([name, value]) => name in USUAL && String(value) !== String(USUAL[name]));
  const hash = new URLSearchParams(said.map(([name, value]) => [name, String(value)])).toString();
  if (hash !== location.hash.slice(1)) history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
}

const STORE = "files";

function store(mode, act) {
  return new Promise((resolve) => {
    let opening;
    try {
      opening = indexedDB.open("pixdec", 1);
    } catch {
      return resolve(undefined); // a browser that keeps nothing
    }
    opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
    opening.onerror = () => resolve(undefined);
    opening.onsuccess = () => {
      const database = opening.result;
      const transaction = database.transaction(STORE, mode);
      const asked = act(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(asked.result);
      transaction.onabort = () => resolve(undefined);
    };
  });
}

export const keep = (file) => store("readwrite", (files) => files.put(file, "last"));
export const kept = () => store("readonly", (files) => files.get("last"));
