/** What is done about alerts: silence, end of a silence, acknowledge. Each says who did it. */

import { SUBJECT } from "./alerts";
import type { Alert, Silence } from "./api";
import { type Child, fill, h } from "./dom";
import { call, RpcError } from "./rpc";

const WHO = "orbit-who";

/** Ask for a few things and do one; where that fails, the dialog stays and says why. */
function ask(
  title: string,
  fields: Child,
  button: string,
  act: (who: string) => Promise<unknown>,
): void {
  const who = h("input", {
    name: "who",
    required: true,
    maxlength: 100,
    autocomplete: "name",
    value: localStorage.getItem(WHO),
  });
  const said = h("p", { class: "said", role: "status" });
  const go = h("button", { class: "primary" }, button);
  const put = async (event: Event): Promise<void> => {
    event.preventDefault();
    go.disabled = true;
    try {
      localStorage.setItem(WHO, who.value);
      await act(who.value);
      dialog.close();
    } catch (error) {
      const advice = error instanceof RpcError && error.advice ? ` ${error.advice}` : "";
      fill(said, h("span", { class: "bad" }, `${(error as Error).message}${advice}`));
    }
    go.disabled = false;
  };
  const dialog = h(
    "dialog",
    { "aria-labelledby": "form-title", on: { close: () => dialog.remove() } },
    h(
      "form",
      { on: { submit: (event: Event) => void put(event) } },
      h("h2", { id: "form-title" }, title),
      fields,
      field("Who you are; this browser remembers it", who),
      said,
      h(
        "div",
        { class: "buttons" },
        h("button", { type: "button", on: { click: () => dialog.close() } }, "Close"),
        go,
      ),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

const field = (label: string, input: HTMLElement): HTMLElement =>
  h("label", {}, h("span", {}, label), input);

/** A pattern that matches this text and no other. */
const literally = (text: string): string => text.replace(/[*?[]/g, "[$&]");

export function silence({ rule, labels, summary }: Alert, done: () => void): void {
  const names = ["rule", ...SUBJECT.filter((name) => name in labels)];
  const own = Object.keys(labels).filter((name) => !SUBJECT.includes(name));
  const matchers = [...names, ...own].map((name) => {
    const value = name === "rule" ? rule : (labels[name] ?? "");
    const input = h("input", {
      name: `matcher-${name}`,
      autocomplete: "off",
      spellcheck: "false",
      placeholder: value,
      value: names.includes(name) ? literally(value) : "",
    });
    return { name, input };
  });
  const duration = h(
    "select",
    { name: "duration" },
    [
      ["1h", "1 hour"],
      ["4h", "4 hours"],
      ["1d", "1 day"],
      ["7d", "7 days"],
    ].map(([value, text]) => h("option", { value }, text)),
  );
  const reason = h("input", { name: "reason", required: true, maxlength: 1000, autofocus: true });
  ask(
    "Silence",
    [
      h("p", { class: "quiet long" }, summary),
      field("Why", reason),
      field("For how long", duration),
      h(
        "fieldset",
        {},
        h("legend", {}, "What all of these match: * is any text, and an empty one does not count"),
        matchers.map(({ name, input }) => field(name, input)),
      ),
    ],
    "Silence",
    async (who) => {
      const wanted = matchers.filter(({ input }) => input.value);
      if (!wanted.length) throw new Error("Say what is to be silenced: all of these are empty.");
      await call("alerts.silence", {
        matchers: Object.fromEntries(wanted.map(({ name, input }) => [name, input.value])),
        duration: duration.value,
        reason: reason.value,
        who,
      });
      done();
    },
  );
}

export function endSilence({ id, reason, who: by }: Silence, done: () => void): void {
  ask(
    "End this silence",
    h("p", { class: "quiet long" }, `${by}: ${reason}`),
    "End",
    async (who) => {
      await call("alerts.unsilence", { id, who });
      done();
    },
  );
}

export function acknowledge({ id, summary }: Alert, done: () => void): void {
  const note = h("input", { name: "note", maxlength: 1000, autofocus: true });
  ask(
    "Acknowledge",
    [
      h("p", { class: "quiet long" }, summary),
      h("p", {}, "Somebody is at it: it is not said again until it is resolved."),
      field("Note, if there is one", note),
    ],
    "Acknowledge",
    async (who) => {
      await call("alerts.acknowledge", { alert: id, who, note: note.value });
      done();
    },
  );
}
