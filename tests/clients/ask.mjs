// Asks a service by a real @trpc/client: node ask.mjs 10|11 LINK TRANSFORMER URL < calls
// calls: [[path, input?], ...], asked at once. Prints what each came to, and the requests.
import * as trpc from "@trpc/client";
import { readFileSync } from "node:fs";
import superjson from "superjson";

const [version, link, transformer, url, token] = process.argv.slice(2);
// What JSON has no form for stands in calls as {date: "..."} and as "undefined".
const made = (value) => {
  if (value === "undefined") return undefined;
  if (typeof value !== "object" || value === null) return value;
  if ("date" in value) return new Date(value.date);
  return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, made(part)]));
};
const calls = JSON.parse(readFileSync(0, "utf8"));
const requests = [];
const own = transformer === "superjson" ? { transformer: superjson } : {};
const links = {
  single: trpc.httpLink,
  batch: trpc.httpBatchLink,
  stream: trpc.unstable_httpBatchStreamLink,
  post: (options) => trpc.httpBatchLink({ ...options, methodOverride: "POST" }),
  "single post": (options) => trpc.httpLink({ ...options, methodOverride: "POST" }),
  slashes: (options) => trpc.httpBatchLink({ ...options, pathSeparator: "/" }),
};
const end = links[link]({
  url,
  ...(version === "11" ? own : {}),
  headers: token ? { Authorization: `Bearer ${token}` } : {},
  fetch: async (address, options) => {
    const response = await fetch(address, options);
    requests.push({ method: options.method, status: response.status });
    return response;
  },
});
const client = trpc.createTRPCProxyClient({ ...(version === "10" ? own : {}), links: [end] });

const told = (value) =>
  value instanceof Date
    ? { date: value.toISOString() }
    : Array.isArray(value)
      ? value.map(told)
      : value && typeof value === "object"
        ? Object.fromEntries(Object.entries(value).map(([key, part]) => [key, told(part)]))
        : value;
const outcomes = await Promise.all(
  calls.map(async ([path, input]) => {
    const procedure = path.split(".").reduce((part, name) => part[name], client);
    try {
      return { data: told(await procedure.query(made(input))) };
    } catch (error) {
      if (!(error instanceof trpc.TRPCClientError)) throw error;
      return { error: { message: error.message, ...error.shape } };
    }
  }),
);
console.log(JSON.stringify({ outcomes, requests }));
