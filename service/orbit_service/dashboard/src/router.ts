/** The address keeps the view: `#/pipelines/<name>?range=1h` can be sent to somebody. */

export interface Route {
  path: string[];
  query: URLSearchParams;
}

export function route(): Route {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { path: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // cut in the middle of an escape, as mail programs do
  }
}

/** The address of a view; of its query what is empty is left out. */
export function link(path: string[], query: Record<string, string | undefined> = {}): string {
  const asked = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) if (value) asked.set(name, value);
  const text = asked.toString();
  return `#/${path.map(encodeURIComponent).join("/")}${text && `?${text}`}`;
}

/** Keep a choice in the address, without a step in the browser's history. */
export function remember(changes: Record<string, string | undefined>): void {
  const { path, query } = route();
  for (const [name, value] of Object.entries(changes)) {
    if (value) query.set(name, value);
    else query.delete(name);
  }
  history.replaceState(null, "", link(path, Object.fromEntries(query)));
}
