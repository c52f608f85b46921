/** "Run now": put in a pending run. */

import { fill, h } from "./dom";
import { link, route } from "./router";
import { attempt, call, RpcError } from "./rpc";

export async function runNow(): Promise<void> {
  const { path } = route();
  const [place, name] = path;
  const pipeline = h("input", {
    name: "pipeline",
    required: true,
    list: "known-pipelines",
    autocomplete: "off",
    maxlength: 200,
    value: place === "pipelines" ? name : undefined,
  });
  const input = h("textarea", {
    name: "input",
    rows: 6,
    spellcheck: "false",
    placeholder: '{"city": 7}',
  });
  const known = h("datalist", { id: "known-pipelines" });
  const said = h("p", { class: "said", role: "status" });
  const go = h("button", { class: "primary" }, "Run");

  const put = async (event: Event): Promise<void> => {
    event.preventDefault();
    let value: unknown = null;
    try {
      if (input.value.trim()) value = JSON.parse(input.value);
    } catch (error) {
      fill(said, h("span", { class: "bad" }, `The input is not JSON: ${(error as Error).message}`));
      input.focus();
      return;
    }
    go.disabled = true;
    fill(said, "Putting it in…");
    try {
      const { id } = await call("runs.create", { pipeline: pipeline.value, input: value });
      const runs = h(
        "a",
        { href: link(["runs"], { pipeline: pipeline.value }), on: { click: () => dialog.close() } },
        "Watch its runs",
      );
      fill(
        said,
        "It is pending as ",
        h("code", {}, id),
        ", and begins when a worker is free. ",
        runs,
      );
    } catch (error) {
      const advice = error instanceof RpcError && error.advice ? ` ${error.advice}` : "";
      fill(said, h("span", { class: "bad" }, `${(error as Error).message}${advice}`));
    }
    go.disabled = false;
  };

  const dialog = h(
    "dialog",
    { "aria-labelledby": "run-title", on: { close: () => dialog.remove() } },
    h(
      "form",
      { on: { submit: (event: Event) => void put(event) } },
      h("h2", { id: "run-title" }, "Run now"),
      h("label", {}, h("span", {}, "Pipeline"), pipeline),
      known,
      h("label", {}, h("span", {}, "Input, as JSON; nothing is null"), input),
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
  const list = await attempt("pipelines.list", { from: "-7d" }).catch(() => null);
  if (list && !(list instanceof RpcError))
    fill(
      known,
      list.pipelines.map(({ name: each }) => h("option", { value: each })),
    );
}
