/** The frame: navigation, the view of the address, and what stands over all views. */

import "./style.css";
import { badge } from "./alerts";
import { runNow } from "./create";
import { type Child, fill, h, svg } from "./dom";
import { clock, tick } from "./format";
import type { View } from "./parts";
import { link, route } from "./router";
import { call, type Connection, onTokenWanted, setToken, stream } from "./rpc";
import { alerts, follow, forgetInfo, serviceInfo } from "./store";
import { nextTheme, theme, themeName } from "./theme";
import { alertsView } from "./views/alerts";
import { overview } from "./views/overview";
import { pipeline } from "./views/pipeline";
import { pipelines } from "./views/pipelines";
import { run } from "./views/run";
import { runs } from "./views/runs";
import { workers } from "./views/workers";

const PLACES: [string[], string][] = [
  [[], "Overview"],
  [["pipelines"], "Pipelines"],
  [["workers"], "Workers"],
  [["runs"], "Runs"],
  [["alerts"], "Alerts"],
];

const navigation = h("nav", { "aria-label": "Views" });
const connection = h("span", { class: "connection", "data-testid": "connection", role: "status" });
const controls = h("div", { class: "controls" });
const notice = h("div", { class: "notice", role: "alert" });
const main = h("main", { id: "main" });
const footer = h("footer", {});

let view: View | null = null;
let timer = 0;
let shownAt = 0;
let createsRuns = false;

function viewOf(): View {
  const { path, query } = route();
  const [place, name] = path;
  if (place === "pipelines") return name ? pipeline(name, query) : pipelines(query);
  if (place === "workers") return workers(query);
  if (place === "runs") return name ? run(name, query) : runs(query);
  if (place === "alerts") return alertsView(name, query);
  return overview(query);
}

function open(): void {
  const first = view === null;
  view?.stop?.();
  view = viewOf();
  main.replaceChildren(view.element);
  document.title = view.title === "Overview" ? "Orbit Metrics" : `${view.title} · Orbit Metrics`;
  navigate();
  if (!first) {
    scrollTo(0, 0);
    // A screen reader starts with what is new, as it does where a page is loaded.
    main.querySelector<HTMLElement>("h1")?.focus({ preventScroll: true });
  }
  void refresh();
}

async function refresh(): Promise<void> {
  clearTimeout(timer);
  const shown = view;
  if (!shown || document.hidden) return;
  try {
    await shown.refresh();
    if (shown !== view) return;
    shownAt = Date.now();
    warn(null);
    if (stream.now.state === "lost") stream.hurry(); // it is back: why wait
    await introduce();
  } catch (error) {
    // While the token is asked for, the form says it.
    if (shown === view && !document.querySelector(".token"))
      warn(error instanceof Error ? error.message : String(error));
  }
  clearTimeout(timer);
  if (shown === view) timer = window.setTimeout(() => void refresh(), shown.every());
}

// ------------------------------------------------------------------ the frame

function navigate(): void {
  const [place] = route().path;
  fill(
    navigation,
    PLACES.map(([path, name]) =>
      h(
        "a",
        { href: link(path), "aria-current": path[0] === place && "page" },
        name,
        path[0] === "alerts" && [" ", badge(alerts.newest ?? [])],
      ),
    ),
  );
}

async function introduce(): Promise<void> {
  const info = await serviceInfo();
  createsRuns = info?.createsRuns ?? false;
  control();
  fill(
    footer,
    info ? `Orbit Metrics ${info.version} on ${info.node}` : "Orbit Metrics, the hub of many nodes",
  );
}

function control(): void {
  const run = h(
    "button",
    { type: "button", class: "primary", "data-key": "run", on: { click: () => void runNow() } },
    "Run now",
  );
  const change = (): void => {
    nextTheme();
    control();
  };
  const label = `Theme: ${themeName()}`;
  fill(
    controls,
    createsRuns && run,
    h(
      "button",
      {
        type: "button",
        class: "icon",
        "data-key": "theme",
        "aria-label": label,
        title: label,
        on: { click: change },
      },
      themeSign(),
    ),
  );
}

function themeSign(): Child {
  const shape = {
    auto: svg("path", { d: "M10 2a8 8 0 0 0 0 16z", class: "solid" }),
    light: svg("path", {
      d: "M10 .5v2M10 17.5v2M.5 10h2M17.5 10h2M3.3 3.3l1.4 1.4M15.3 15.3l1.4 1.4M3.3 16.7l1.4-1.4M15.3 4.7l1.4-1.4",
    }),
    dark: svg("path", { d: "M6.5 4.5a7 7 0 0 0 9 9a7.2 7.2 0 1 1-9-9z", class: "solid" }),
  }[theme()];
  const radius = { auto: 8, light: 4, dark: 0 }[theme()];
  return svg(
    "svg",
    { viewBox: "0 0 20 20", width: 20, height: 20, "aria-hidden": "true", "data-key": theme() },
    svg("circle", { cx: 10, cy: 10, r: radius }),
    shape,
  );
}

function showConnection(now: Connection): void {
  const [kind, text] = {
    connecting: ["idle", "Connecting…"],
    live: ["ok", "Live"],
    polling: ["ok", "Every 3 s"],
    locked: ["idle", "Locked"],
    lost: ["error", "Connection lost"],
  }[now.state] as [string, string];
  connection.className = `connection ${kind}`;
  document.body.classList.toggle("stale", now.state === "lost");
  fill(
    connection,
    h("i", { "aria-hidden": "true" }),
    text,
    now.state === "lost" && "… ",
    now.state === "lost" && countdown(now.retryAt),
  );
}

function countdown(retryAt: number): HTMLElement {
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  return h(
    "span",
    { class: "num", "aria-hidden": "true" },
    seconds ? `again in ${seconds} s` : "trying",
  );
}

function warn(why: string | null): void {
  fill(
    notice,
    why !== null &&
      h(
        "p",
        {},
        `${why.replace(/^./, (first) => first.toUpperCase())}. `,
        shownAt > 0 && `What you see was so at ${clock(shownAt)}.`,
      ),
  );
}

// ------------------------------------------------------------------ the token

function askForToken(wrong: boolean): void {
  if (document.querySelector(".token")) return;
  const field = h("input", {
    type: "password",
    name: "token",
    autocomplete: "current-password",
    required: true,
    "aria-describedby": "token-why",
  });
  const take = (event: Event): void => {
    event.preventDefault();
    setToken(field.value.trim());
    dialog.close();
    dialog.remove();
    void refresh();
  };
  const dialog = h(
    "dialog",
    // It cannot be left: without the token there is nothing to see.
    {
      class: "token",
      "aria-labelledby": "token-title",
      on: { cancel: (event: Event) => event.preventDefault() },
    },
    h(
      "form",
      { "data-testid": "token-form", on: { submit: take } },
      h("h2", { id: "token-title" }, "Who is there?"),
      h(
        "p",
        { id: "token-why" },
        wrong ? "That is not its token. " : "",
        "This service asks for its token, the one of ",
        h("code", {}, "ORBIT_TOKEN"),
        " or ",
        h("code", {}, "ORBIT_TOKEN_FILE"),
        ". It is kept until this tab is closed.",
      ),
      h("label", {}, h("span", {}, "Token"), field),
      h("div", { class: "buttons" }, h("button", { class: "primary" }, "Open")),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

// ------------------------------------------------------------------ begin

function begin(): void {
  const skip = (event: Event): void => {
    event.preventDefault(); // the address is the view's
    main.querySelector<HTMLElement>("h1")?.focus();
  };
  document.body.append(
    h("a", { class: "skip", href: "#main", on: { click: skip } }, "Skip to the view"),
    h(
      "header",
      {},
      h("a", { class: "brand", href: link([]) }, brand(), h("span", {}, "Orbit Metrics")),
      navigation,
      connection,
      controls,
    ),
    notice,
    main,
    footer,
  );
  control();
  showConnection(stream.now);
  onTokenWanted(askForToken);
  stream.onChange((now) => {
    showConnection(now);
    if (now.state === "live") {
      forgetInfo();
      void refresh();
    }
  });
  addEventListener("hashchange", open);
  addEventListener("keydown", (event) => {
    const typing = (event.target as Element).matches("input, select, textarea");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const search = main.querySelector<HTMLInputElement>("input[type=search]");
    if (search) search.select();
    else location.hash = link(["pipelines"]);
  });
  document.addEventListener("visibilitychange", () => document.hidden || void refresh());
  setInterval(() => {
    tick();
    if (stream.now.state === "lost") showConnection(stream.now);
  }, 1_000);
  follow();
  alerts.hear(navigate);
  open();
  // Where a token is wanted, it is asked for before the stream is tried.
  void call("worker.health", {}).then(
    () => stream.start(),
    () => stream.start(),
  );
}

function brand(): SVGElement {
  return svg(
    "svg",
    { viewBox: "0 0 32 32", width: 26, height: 26, "aria-hidden": "true" },
    svg("circle", { cx: 16, cy: 16, r: 5 }),
    svg("ellipse", { cx: 16, cy: 16, rx: 14, ry: 6.5, transform: "rotate(-32 16 16)" }),
    svg("circle", { cx: 27, cy: 8.2, r: 3, class: "moon" }),
  );
}

begin();
