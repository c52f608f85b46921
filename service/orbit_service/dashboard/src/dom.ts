/**
 * Elements without a framework. Texts go in as text nodes and never as markup, so that a
 * hostile name is text everywhere; styles go in by CSSOM, which the page's policy admits.
 */

export type Child = Node | string | number | null | undefined | false | Child[];

interface Props {
  class?: string;
  style?: Record<string, string>;
  on?: Record<string, (event: never) => void>;
  [attribute: string]: unknown;
}

type Handlers = Record<string, (event: Event) => void>;

// What listens to an element, so that an element can take over what listens to another.
const heard = new WeakMap<Element, Handlers>();

function hear(element: Element, handlers: Handlers): void {
  const known = heard.get(element) ?? {};
  heard.set(element, handlers);
  for (const name of Object.keys(handlers)) {
    if (name in known) continue;
    element.addEventListener(name, (event) => heard.get(element)?.[name]?.(event));
  }
}

function append(parent: Element, children: Child[]): void {
  for (const child of children) {
    if (Array.isArray(child)) append(parent, child);
    else if (child !== null && child !== undefined && child !== false)
      parent.append(child instanceof Node ? child : String(child));
  }
}

function dress<E extends HTMLElement | SVGElement>(element: E, props: Props, children: Child[]): E {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") hear(element, value as Handlers);
    else if (name === "style")
      for (const [property, text] of Object.entries(value as Record<string, string>))
        element.style.setProperty(property, text);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  append(element, children);
  return element;
}

export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  return dress(document.createElement(tag), props, children);
}

export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  props: Props = {},
  ...children: Child[]
): SVGElementTagNameMap[K] {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

/**
 * Make an element's children equal to these, changing as little as possible: focus, selection,
 * scrolling and what is unfolded stay where they are.
 */
export function fill(parent: Element, ...children: Child[]): void {
  const wanted = document.createElement("div");
  append(wanted, children);
  fit(parent, wanted);
}

function keyOf(node: Node | null): string | null {
  return node instanceof Element ? node.getAttribute("data-key") : null;
}

function fit(parent: Element, wanted: Element): void {
  const fresh = [...wanted.childNodes];
  const keys = new Set(fresh.map(keyOf));
  const known = new Map<string, ChildNode>();
  for (const node of parent.childNodes) {
    const key = keyOf(node);
    if (key !== null) known.set(key, node);
  }
  let at = parent.firstChild;
  for (const node of fresh) {
    while (at && keyOf(at) !== null && !keys.has(keyOf(at))) at = dropped(at);
    const key = keyOf(node);
    let match = key === null ? at : known.get(key);
    if (key !== null) known.delete(key);
    if (match && (keyOf(match) !== key || match.nodeName !== node.nodeName)) match = null;
    if (!match) {
      parent.insertBefore(node, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else parent.insertBefore(match, at);
    become(match, node);
  }
  while (at) at = dropped(at);
}

function dropped(node: ChildNode): ChildNode | null {
  const next = node.nextSibling;
  node.remove();
  return next;
}

// Whether something is unfolded is the reader's choice; styles go another way.
const OWN = new Set(["open", "style"]);

function become(old: Node, fresh: Node): void {
  if (!(old instanceof Element && fresh instanceof Element)) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && !OWN.has(name)) old.removeAttribute(name);
  for (const { name, value } of [...fresh.attributes])
    if (!OWN.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [styled, style] = [old as HTMLElement, (fresh as HTMLElement).style.cssText];
  if (styled.style.cssText !== style) styled.style.cssText = style;
  hear(old, heard.get(fresh) ?? {});
  fit(old, fresh);
  const typed = old instanceof HTMLInputElement || old instanceof HTMLSelectElement;
  if (typed && old !== document.activeElement) {
    const value = (fresh as HTMLInputElement | HTMLSelectElement).value;
    if (old.value !== value) old.value = value;
  }
}
