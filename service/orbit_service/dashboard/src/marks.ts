/** When alerts fired, for charts of the same time. */

import type { Alert, AuditEntry } from "./api";
import { day, clock, plural } from "./format";
import { attempt, RpcError } from "./rpc";
import { alerts } from "./store";

export interface Mark {
  rule: string;
  what: string; // in a sentence, where it is known
  from: number | null; // null: before what was asked for
  until: number | null; // null: it goes on
}

const MOST = 1_000; // entries of the audit that are answered at once
const SAID = 5;

/** What fired since then, about this pipeline or about anything; nothing where none is kept. */
export async function askMarks(from: string, pipeline?: string): Promise<Mark[]> {
  const [fired, resolved] = await Promise.all([
    attempt("alerts.history", { from, kind: "firing", limit: MOST }),
    attempt("alerts.history", { from, kind: "resolved", limit: MOST }),
  ]);
  if (fired instanceof RpcError || resolved instanceof RpcError) return [];
  const about = ({ labels }: { labels: Record<string, string> }): boolean =>
    pipeline === undefined || labels.pipeline === pipeline;
  return marksOf(
    [...fired.entries, ...resolved.entries].filter(about),
    (alerts.newest ?? []).filter((alert) => alert.phase === "firing" && about(alert)),
  );
}

/** From when to when, the earliest first, by beginnings and ends and what fires now. */
function marksOf(entries: AuditEntry[], now: Alert[]): Mark[] {
  const marks: Mark[] = [];
  const open = new Map<string, Mark>();
  for (const { kind, alert, at, rule, text } of entries.toSorted((a, b) => a.id - b.id)) {
    const key = alert ?? "";
    const begun = open.get(key);
    open.delete(key);
    if (kind === "resolved") {
      if (begun) begun.until = at;
      else marks.push({ rule: rule ?? "", what: "", from: null, until: at });
      continue;
    }
    // An end that was not written down: what is known is that it began.
    if (begun) begun.until = begun.from;
    const mark = { rule: rule ?? "", what: text, from: at, until: null };
    open.set(key, mark);
    marks.push(mark);
  }
  for (const { id, rule, summary, firedAt } of now)
    if (!open.delete(id)) marks.push({ rule, what: summary, from: firedAt, until: null });
  for (const mark of open.values()) mark.until = mark.from;
  return marks.sort((a, b) => (a.from ?? 0) - (b.from ?? 0));
}

/** Those that fired at any time between the two. */
export const during = (marks: Mark[], from: number, to: number): Mark[] =>
  marks.filter((mark) => (mark.from ?? 0) < to && (mark.until ?? Number.POSITIVE_INFINITY) >= from);

/** For whoever does not see them. */
export function sayMarks(marks: Mark[]): string {
  if (!marks.length) return "";
  const when = (ms: number): string => `${day(ms)} ${clock(ms, false)}`;
  const said = marks.slice(-SAID).map(({ rule, what, from, until }) => {
    const began = from === null ? "from before it" : `from ${when(from)}`;
    return `${what || rule}, ${began} ${until === null ? "until now" : `to ${when(until)}`}`;
  });
  const earlier = marks.length - said.length;
  return `${plural(marks.length, "alert")} fired: ${said.join("; ")}${
    earlier ? `; and ${earlier} before` : ""
  }.`;
}
