/** Charts over time. What a chart shows is said in a sentence too, for those who do not see it. */

import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import type { Point } from "./api";
import { h, svg, fill } from "./dom";
import { clock, compact, count, day, duration, exact } from "./format";
import { during, type Mark, sayMarks } from "./marks";

interface Line {
  label: string;
  colour: string; // name of a custom property
  dash?: number[];
  of: (point: Point) => number | null;
}

interface Kind {
  title: string;
  bars: boolean;
  lines: Line[];
  format: (value: number) => string;
  /** What the legend tells while nothing is pointed at: values, and of when they are. */
  rest: (points: Point[]) => [(number | null)[], string];
  say: (points: Point[]) => string;
}

const peak = (points: Point[], of: (point: Point) => number | null): number =>
  points.reduce((most, point) => Math.max(most, of(point) ?? 0), 0);

const sums = (points: Point[]): [number, number] => [
  points.reduce((sum, point) => sum + point.runs, 0),
  points.reduce((sum, point) => sum + point.failed, 0),
];

export const RUNS: Kind = {
  title: "Runs and failures",
  bars: true,
  lines: [
    { label: "Runs", colour: "--accent", of: (point) => point.runs },
    { label: "Failed", colour: "--error", of: (point) => point.failed },
  ],
  format: compact,
  rest: (points) => [sums(points), "in all"],
  say: (points) => {
    const [runs, failed] = sums(points);
    return `${count(runs)} runs, ${count(failed)} of them failed; at most ${count(
      peak(points, (point) => point.runs),
    )} runs and ${count(peak(points, (point) => point.failed))} failures in one step.`;
  },
};

export const TIMES: Kind = {
  title: "How long runs take",
  bars: false,
  lines: [
    { label: "p50", colour: "--accent", of: (point) => point.p50 },
    { label: "p95", colour: "--warn", dash: [6, 3], of: (point) => point.p95 },
    { label: "p99", colour: "--line-3", dash: [2, 3], of: (point) => point.p99 },
  ],
  format: duration,
  rest: (points) => {
    const last = newest(points);
    return [[last?.p50 ?? null, last?.p95 ?? null, last?.p99 ?? null], "newest"];
  },
  say: (points) => {
    const last = newest(points);
    return last
      ? `Newest: p50 ${duration(last.p50)}, p95 ${duration(last.p95)}, p99 ${duration(last.p99)}; ` +
          `the highest p95 is ${duration(peak(points, (point) => point.p95))}.`
      : "No run was measured.";
  },
};

const newest = (points: Point[]): Point | undefined =>
  points.findLast((point) => point.p95 !== null);

const HEIGHT = 190;
const BRIDGED = 4; // steps without a run, over which a line still goes on

export interface Chart {
  element: HTMLElement;
  show: (points: Point[], step: number, marks: Mark[]) => void;
  stop: () => void;
}

export function chart(kind: Kind): Chart {
  const box = h("div", { class: "plot", "aria-hidden": "true" });
  const legend = h("div", { class: "legend", "aria-hidden": "true" });
  const said = h("p", { class: "unseen" });
  const head = h("figcaption", {}, h("h2", {}, kind.title), legend);
  const element = h("figure", { class: "panel chart" }, head, box, said);
  let points: Point[] = [];
  let marks: Mark[] = [];
  let step = 0;
  let plot: uPlot | null = null;

  const tell = (index: number | null): void => {
    const point = index === null ? undefined : points[index];
    const [values, of] = point
      ? [kind.lines.map((line) => line.of(point)), when(point.at, step)]
      : kind.rest(points);
    fill(
      legend,
      kind.lines.map((line, i) =>
        h(
          "span",
          {},
          key(line),
          ` ${line.label} `,
          h("b", { class: "num" }, values[i] == null ? "–" : kind.format(values[i])),
        ),
      ),
      marks.length > 0 &&
        h("span", {}, markKey(), " Alerts ", h("b", { class: "name" }, fired(point))),
      h("span", { class: "num of", title: point && exact(point.at) }, of),
    );
  };

  /** How many fired in all, or which did where one points. */
  const fired = (point: Point | undefined): string => {
    if (!point) return count(marks.length);
    const rules = during(marks, point.at, point.at + step).map(({ rule }) => rule);
    return [...new Set(rules)].join(", ") || "–";
  };

  const draw = (): void => {
    plot?.destroy();
    plot = null;
    if (!points.length || !box.clientWidth) return;
    const looks = options(kind, box.clientWidth, step, tell, () => marks);
    plot = new uPlot(looks, data(kind, points), box);
    tell(null);
  };

  const sized = new ResizeObserver(() => {
    if (plot) plot.setSize({ width: box.clientWidth, height: HEIGHT });
    else draw();
  });
  sized.observe(box);
  // Colours are painted, not styled: another theme needs another painting.
  addEventListener("themechange", draw);

  return {
    element,
    show(fresh, length, firings) {
      points = fresh;
      step = length;
      marks = firings;
      said.textContent = `${kind.say(points)} ${sayMarks(marks)}`;
      if (plot) {
        plot.setData(data(kind, points));
        tell(plot.cursor.idx ?? null);
      } else draw();
    },
    stop() {
      sized.disconnect();
      removeEventListener("themechange", draw);
      plot?.destroy();
      plot = null;
    },
  };
}

const when = (ms: number, step: number): string =>
  step >= 3_600_000 ? `${day(ms)} ${clock(ms, false)}` : clock(ms, step < 60_000);

function key(line: Line): SVGElement {
  const stroke = `var(${line.colour})`;
  const style = { stroke, "stroke-dasharray": line.dash?.join(" ") ?? "none" };
  return svg("svg", { width: 18, height: 8, class: "key" }, svg("path", { d: "M0 4H18", style }));
}

const markKey = (): SVGElement =>
  svg(
    "svg",
    { width: 12, height: 10, class: "mark-key" },
    svg("path", { d: "M1 0h11v10H1z" }),
    svg("path", { d: "M1 0V10", class: "begin" }),
  );

/** Behind the lines: from when to when alerts fired, with a head at the beginning. */
function paint(plot: uPlot, marks: Mark[]): void {
  const { ctx, bbox } = plot;
  const [left, right] = [bbox.left, bbox.left + bbox.width];
  const head = 4 * devicePixelRatio;
  const x = (ms: number): number =>
    Math.min(Math.max(plot.valToPos(ms / 1000, "x", true), left), right);
  ctx.save();
  ctx.fillStyle = ctx.strokeStyle = colour("--error");
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([]); // a series may have left its own
  for (const { from, until } of marks) {
    const [begin, end] = [x(from ?? Number.NEGATIVE_INFINITY), x(until ?? Date.now())];
    ctx.globalAlpha = 0.13;
    ctx.fillRect(begin, bbox.top, end - begin, bbox.height);
    if (begin === left || begin === right) continue; // it began before, or after what is drawn
    ctx.globalAlpha = 0.9;
    ctx.beginPath();
    ctx.moveTo(begin, bbox.top);
    ctx.lineTo(begin, bbox.top + bbox.height);
    ctx.stroke();
    ctx.beginPath();
    ctx.moveTo(begin - head, bbox.top);
    ctx.lineTo(begin + head, bbox.top);
    ctx.lineTo(begin, bbox.top + 1.5 * head);
    ctx.fill();
  }
  ctx.restore();
}

function data(kind: Kind, points: Point[]): uPlot.AlignedData {
  return [points.map((point) => point.at / 1000), ...kind.lines.map((line) => points.map(line.of))];
}

function colour(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function options(
  kind: Kind,
  width: number,
  step: number,
  tell: (index: number | null) => void,
  marks: () => Mark[],
): uPlot.Options {
  const font = "11px system-ui, sans-serif";
  const axis = { stroke: colour("--muted"), font, ticks: { show: false } };
  const grid = { stroke: colour("--grid"), width: 1 };
  const bridged = (plot: uPlot): number => {
    const [from = 0, to = 0] = [plot.scales.x?.min, plot.scales.x?.max];
    return (BRIDGED * step * plot.bbox.width) / Math.max((to - from) * 1000, 1);
  };
  const bars = uPlot.paths.bars?.({ size: [0.85, 24], align: 1 });
  return {
    width,
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, sync: { key: "time" }, points: { size: 6 } },
    scales: {
      // A step has a length: the last one ends where the range does.
      x: { time: true, range: (_plot, from, to) => [from, to + (kind.bars ? step / 1000 : 0)] },
      y: { range: (_plot, _least, most) => [0, Math.max(most, kind.bars ? 1 : 10) * 1.08] },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 26, space: 64, values: times },
      {
        ...axis,
        grid,
        size: 58,
        space: 34,
        incrs: kind.bars ? whole : undefined,
        values: (_plot, splits) => splits.map(kind.format),
      },
    ],
    series: [
      {},
      ...kind.lines.map((line): uPlot.Series => ({
        label: line.label,
        stroke: colour(line.colour),
        width: kind.bars ? 0 : 1.75,
        fill: kind.bars ? colour(line.colour === "--accent" ? "--bar" : line.colour) : undefined,
        paths: kind.bars ? bars : undefined,
        dash: line.dash,
        gaps: (plot, _series, _from, _to, gaps) =>
          gaps.filter(([from, to]) => to - from > bridged(plot)),
        points: kind.bars ? { show: false } : { size: 4 },
      })),
    ],
    hooks: {
      drawClear: [(plot) => paint(plot, marks())],
      setCursor: [(plot) => tell(plot.cursor.idx ?? null)],
    },
  };
}

const whole = Array.from({ length: 9 }, (_, digits) => 10 ** digits).flatMap((n) => [
  n,
  2 * n,
  5 * n,
]);

/** Local time, with the day where one begins or where a step is a day. */
function times(
  _plot: uPlot,
  splits: number[],
  _axis: number,
  _space: number,
  step: number,
): string[] {
  let before = "";
  return splits.map((seconds) => {
    const ms = seconds * 1000;
    const today = day(ms);
    const changed = before !== "" && today !== before;
    before = today;
    return step >= 86_400 || changed ? today : clock(ms, step < 60);
  });
}

/** A line of a few pixels: runs over time, failures below in another colour and shape. */
export function sparkline(points: Point[]): SVGElement {
  const [width, height] = [96, 22];
  const most = Math.max(
    peak(points, (point) => point.runs),
    1,
  );
  const each = width / Math.max(points.length, 1);
  const bar = (n: number, i: number): string => {
    const tall = n ? Math.max((n / most) * height, 1.5) : 0;
    const wide = Math.max(each - 0.4, 0.6).toFixed(1);
    return `M${(i * each).toFixed(1)} ${height}v${(-tall).toFixed(1)}h${wide}V${height}z`;
  };
  const path = (of: (point: Point) => number): string =>
    points.flatMap((point, i) => (of(point) ? [bar(of(point), i)] : [])).join("");
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" },
    svg("path", { class: "spark-runs", d: path((point) => point.runs) }),
    svg("path", { class: "spark-failed", d: path((point) => point.failed) }),
  );
}
