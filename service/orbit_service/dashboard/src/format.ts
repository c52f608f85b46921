/** Numbers and times as people read them. */

import { h } from "./dom";

const NO = "–";
const SPACE = "\u00a0"; // between a number and its unit, so that they stay on one line
const grouped = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (n: number | null | undefined): string => (n == null ? NO : grouped.format(n));

export const compact = (n: number): string => (n < 10_000 ? grouped.format(n) : short.format(n));

export const percent = (n: number | null | undefined, decimals = 2): string =>
  n == null ? NO : `${n.toFixed(decimals)}${SPACE}%`;

export const perHour = (n: number): string =>
  n >= 1000 ? grouped.format(Math.round(n)) : n.toFixed(n >= 100 ? 1 : 2);

/** "840 ms", "2.30 s", "1m 12s", "3h 5m", "2d 4h" */
export function duration(ms: number | null | undefined): string {
  if (ms == null) return NO;
  if (ms < 1000) return `${Math.round(ms)}${SPACE}ms`;
  if (ms < 59_995) return `${(ms / 1000).toFixed(ms < 9_995 ? 2 : 1)}${SPACE}s`;
  return length(Math.round(ms / 1000));
}

/** Whole seconds in at most two parts. */
export function length(seconds: number): string {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s}s`;
  if (s < 3600) return parts(Math.floor(s / 60), "m", s % 60, "s");
  if (s < 86_400) return parts(Math.floor(s / 3600), "h", Math.floor((s % 3600) / 60), "m");
  return parts(Math.floor(s / 86_400), "d", Math.floor((s % 86_400) / 3600), "h");
}

function parts(major: number, one: string, minor: number, other: string): string {
  return minor ? `${major}${one}${SPACE}${minor}${other}` : `${major}${one}`;
}

/** "+12 %", or "×15" of much more; "–" from nothing. */
export function signed(n: number | null, unit: string, decimals = 0): string {
  if (n === null) return NO;
  if (unit === "%" && n >= 1000) return `×${compact(Math.round(n / 100 + 1))}`;
  const text = Math.abs(n).toFixed(decimals);
  if (Number(text) === 0) return `±0${SPACE}${unit}`;
  return `${n > 0 ? "+" : "−"}${text}${SPACE}${unit}`;
}

const two = (n: number): string => String(n).padStart(2, "0");

/** ISO 8601 of this place, with its offset from UTC: what one copies into a report. */
export function exact(ms: number): string {
  const at = new Date(ms);
  const offset = -at.getTimezoneOffset();
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  const time = `${clock(ms)}.${String(at.getMilliseconds()).padStart(3, "0")}`;
  const zone = `${two(Math.floor(Math.abs(offset) / 60))}:${two(Math.abs(offset) % 60)}`;
  return `${day}T${time}${offset < 0 ? "-" : "+"}${zone}`;
}

/** "14:03:27" of this place. */
export function clock(ms: number, seconds = true): string {
  const at = new Date(ms);
  const minutes = `${two(at.getHours())}:${two(at.getMinutes())}`;
  return seconds ? `${minutes}:${two(at.getSeconds())}` : minutes;
}

const dayName = new Intl.DateTimeFormat("en", { month: "short", day: "numeric" });
export const day = (ms: number): string => dayName.format(ms);

/** The clock's time today, else with the day. */
export function moment(ms: number): string {
  const today = new Date(ms).toDateString() === new Date().toDateString();
  return today ? clock(ms) : `${day(ms)} ${clock(ms, false)}`;
}

function age(ms: number): string {
  const seconds = Math.floor((Date.now() - ms) / 1000);
  return seconds < 1 ? "now" : `${length(seconds)} ago`;
}

/** "3m 20s ago", which ticks; the exact time on hover. */
export function ago(ms: number | null | undefined): HTMLElement | string {
  if (ms == null) return NO;
  return h(
    "time",
    { datetime: new Date(ms).toISOString(), title: exact(ms), "data-ago": ms },
    age(ms),
  );
}

/** For how long something goes on, which ticks. */
export function since(ms: number): HTMLElement {
  const text = length((Date.now() - ms) / 1000);
  return h(
    "time",
    { datetime: new Date(ms).toISOString(), title: exact(ms), "data-since": ms },
    text,
  );
}

/** The time of the clock; the exact one on hover. */
export function at(ms: number | null | undefined): HTMLElement | string {
  if (ms == null) return NO;
  return h("time", { datetime: new Date(ms).toISOString(), title: exact(ms) }, moment(ms));
}

/** Let every age on the page tick. */
export function tick(): void {
  for (const element of document.querySelectorAll<HTMLElement>(
    "time[data-ago], time[data-since]",
  )) {
    const { ago, since } = element.dataset;
    const text = ago ? age(Number(ago)) : length((Date.now() - Number(since)) / 1000);
    if (element.textContent !== text) element.textContent = text;
  }
}

export const plural = (n: number, one: string, many = `${one}s`): string =>
  `${count(n)} ${n === 1 ? one : many}`;
