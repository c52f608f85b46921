/**
 * An ordinary client of the service: POST /rpc for questions, /ws for what goes on.
 *
 * Questions of one moment go in one batch. The stream mends itself with back-off; where there is
 * none (a proxy that knows no WebSocket), the totals are asked for every few seconds instead.
 */

import type { Procedures, Subscriptions } from "./api";

const NOT_ON_HUB = -32026;
const POLL_MS = 3_000;
const QUIET_MS = 15_000; // of a stream that says something every second
const BACK_OFF_MS = [500, 1_000, 2_000, 4_000, 8_000, 15_000];
const ANSWER_MS = 30_000;
const LOCKED = "the service wants its token";

export class RpcError extends Error {
  constructor(
    readonly code: number,
    message: string,
    readonly advice: string | undefined = undefined,
  ) {
    super(message);
  }

  /** True where a hub says that each node answers this for itself. */
  get notOnHub(): boolean {
    return this.code === NOT_ON_HUB;
  }
}

export class Unreachable extends Error {}

// ------------------------------------------------------------------ the token

const TOKEN = "orbit-token";
let askForToken: (wrong: boolean) => void = () => {};
let locked = false; // nothing is asked until there is another token

export function onTokenWanted(ask: (wrong: boolean) => void): void {
  askForToken = ask;
}

const token = (): string | null => sessionStorage.getItem(TOKEN);

/** Use it from now on, for as long as this tab is open. */
export function setToken(text: string): void {
  sessionStorage.setItem(TOKEN, text);
  locked = false;
  stream.hurry();
}

function base64url(text: string): string {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// ------------------------------------------------------------------ questions

interface Question {
  method: string;
  params: object;
  resolve: (result: never) => void;
  reject: (why: Error) => void;
}

interface Answer {
  id: number;
  result?: unknown;
  error?: { code: number; message: string; data?: { advice?: string; problems?: string[] } };
}

let asked: Question[] = [];

export function call<K extends keyof Procedures>(
  method: K,
  params: Procedures[K][0],
): Promise<Procedures[K][1]> {
  return new Promise((resolve, reject) => {
    asked.push({ method, params, resolve, reject });
    if (asked.length === 1) queueMicrotask(send);
  });
}

/** The result, or what is said instead, so that one part of a view can fail alone. */
export async function attempt<K extends keyof Procedures>(
  method: K,
  params: Procedures[K][0],
): Promise<Procedures[K][1] | RpcError> {
  try {
    return await call(method, params);
  } catch (error) {
    if (error instanceof RpcError) return error;
    throw error;
  }
}

async function send(): Promise<void> {
  const batch = asked;
  asked = [];
  try {
    const text = batch.map(({ method, params }, id) => ({ jsonrpc: "2.0", id, method, params }));
    const answers = new Map((await post(text)).map((answer) => [answer.id, answer]));
    batch.forEach(({ resolve, reject }, id) => {
      const answer = answers.get(id);
      if (!answer) reject(new Unreachable("the service left a question without an answer"));
      else if (answer.error) reject(asError(answer.error));
      else resolve(answer.result as never);
    });
  } catch (error) {
    for (const { reject } of batch) reject(error as Error);
  }
}

function asError({ code, message, data }: NonNullable<Answer["error"]>): RpcError {
  return new RpcError(code, message, data?.advice ?? data?.problems?.join("; "));
}

async function post(body: object): Promise<Answer[]> {
  if (locked) throw new Unreachable(LOCKED);
  const secret = token();
  const headers: Record<string, string> = { "Content-Type": "application/json" };
  if (secret) headers.Authorization = `Bearer ${secret}`;
  const signal = AbortSignal.timeout(ANSWER_MS);
  let response: Response;
  let text: string;
  try {
    response = await fetch("/rpc", { method: "POST", headers, body: JSON.stringify(body), signal });
    text = await response.text();
  } catch {
    throw new Unreachable("the service does not answer");
  }
  if (response.status === 401) {
    // Another question may have brought the right one meanwhile.
    if (token() === secret && !locked) {
      locked = true;
      askForToken(secret !== null);
    }
    throw new Unreachable(LOCKED);
  }
  if (!response.ok) throw new Unreachable(text.trim() || `HTTP ${response.status}`);
  return JSON.parse(text) as Answer[];
}

// ------------------------------------------------------------------ the stream

export type Connection =
  | { state: "connecting" }
  | { state: "live" }
  | { state: "polling" }
  | { state: "locked" }
  | { state: "lost"; retryAt: number };

interface Wish {
  method: string;
  params: object;
  tell: (news: never) => void;
  poll: (() => void) | undefined;
  subscription?: string;
}

class Stream {
  private socket: WebSocket | null = null;
  private wishes: Wish[] = [];
  private waiting = new Map<number, Wish>();
  private id = 0;
  private failures = 0;
  private timer = 0;
  private heardAt = 0;
  private listeners: ((now: Connection) => void)[] = [];
  now: Connection = { state: "connecting" };

  /** Call `tell` with what comes, until the function that is returned is called. */
  subscribe<K extends keyof Subscriptions>(
    method: K,
    params: Subscriptions[K][0],
    tell: (news: Subscriptions[K][1]) => void,
    poll?: () => void,
  ): () => void {
    const wish: Wish = { method, params, tell, poll };
    this.wishes.push(wish);
    this.ask(wish);
    return () => {
      this.wishes = this.wishes.filter((other) => other !== wish);
      const subscription = wish.subscription;
      // What is asked alike has one name; somebody else may still listen.
      if (subscription && !this.wishes.some((other) => other.subscription === subscription))
        this.write("unsubscribe", { subscription });
    };
  }

  onChange(listener: (now: Connection) => void): void {
    this.listeners.push(listener);
  }

  start(): void {
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
    setInterval(() => this.watch(), 1_000);
    this.connect();
  }

  /** Try again at once where a retry waits. */
  hurry(): void {
    if (this.socket) return;
    this.failures = 0;
    this.connect();
  }

  private become(now: Connection): void {
    this.now = now;
    for (const listener of this.listeners) listener(now);
  }

  private connect(): void {
    clearTimeout(this.timer);
    this.timer = 0;
    if (locked) return this.become({ state: "locked" });
    const secret = token();
    const protocols = ["orbit-metrics.v1", ...(secret ? [`bearer.${base64url(secret)}`] : [])];
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws`, protocols);
    this.socket = socket;
    this.heardAt = Date.now();
    socket.onopen = () => {
      this.failures = 0;
      this.heardAt = Date.now();
      for (const wish of this.wishes) this.ask(wish);
      this.become({ state: "live" });
    };
    socket.onmessage = ({ data }) => this.hear(String(data));
    socket.onclose = () => {
      if (this.socket === socket) void this.mend();
    };
  }

  /** After the stream has ended: is the service away, or does the stream not come through? */
  private async mend(): Promise<void> {
    this.socket = null;
    this.waiting.clear();
    for (const wish of this.wishes) delete wish.subscription;
    const pause = BACK_OFF_MS[Math.min(this.failures, BACK_OFF_MS.length - 1)] ?? 0;
    const retryAt = Date.now() + pause * (0.75 + Math.random() / 2);
    this.failures += 1;
    this.timer = window.setTimeout(() => this.connect(), retryAt - Date.now());
    if (this.now.state !== "polling") this.become({ state: "lost", retryAt });
    try {
      await call("worker.health", {});
    } catch (error) {
      if (!(error instanceof RpcError)) {
        if (locked) this.connect();
        else if (this.timer) this.become({ state: "lost", retryAt });
        return;
      }
    }
    if (this.failures > 1 && this.now.state !== "live") this.become({ state: "polling" });
  }

  private polledAt = 0;

  private watch(): void {
    const now = Date.now();
    if (this.socket?.readyState === WebSocket.OPEN && now - this.heardAt > QUIET_MS) {
      // A laptop that slept, or a network that went: its end may take minutes to be told.
      const quiet = this.socket;
      quiet.onclose = null;
      quiet.close();
      void this.mend();
    }
    if (this.now.state === "polling" && now - this.polledAt >= POLL_MS) {
      this.polledAt = now;
      for (const wish of this.wishes) wish.poll?.();
    }
  }

  private ask(wish: Wish): void {
    const id = this.write(wish.method, wish.params);
    if (id !== null) this.waiting.set(id, wish);
  }

  private write(method: string, params: object): number | null {
    if (this.socket?.readyState !== WebSocket.OPEN) return null;
    this.id += 1;
    this.socket.send(JSON.stringify({ jsonrpc: "2.0", id: this.id, method, params }));
    return this.id;
  }

  private hear(text: string): void {
    this.heardAt = Date.now();
    const message = JSON.parse(text) as {
      id?: number;
      result?: { subscription?: string };
      params?: { subscription?: string };
    };
    const wish = message.id === undefined ? undefined : this.waiting.get(message.id);
    if (message.id !== undefined) this.waiting.delete(message.id);
    const subscription = message.result?.subscription;
    if (wish && subscription) {
      if (this.wishes.includes(wish)) wish.subscription = subscription;
      else if (!this.wishes.some((other) => other.subscription === subscription))
        this.write("unsubscribe", { subscription }); // it was given up before the answer
    }
    const told = message.params?.subscription;
    if (told === undefined) return;
    for (const listener of this.wishes)
      if (listener.subscription === told) listener.tell(message.params as never);
  }
}

export const stream = new Stream();
