/** Where a page gets what it shows: from the server that sent it, or out of itself. */

import { type Packet, readPacket } from "./packet";

export type Query = Readonly<Record<string, string | number | null | undefined>>;

export interface Source {
  /** Whether anything can be asked for; otherwise only what the page carries. */
  live: boolean;
  /** What a page that carries its data shows first. */
  start: Readonly<Record<string, string>>;
  /** Whether there is an answer without asking. */
  has(resource: string, query?: Query): boolean;
  bytes(resource: string, query?: Query): Promise<ArrayBuffer>;
  /** Forgets answers that may have changed, as of a run that is being written: a resource's, or all. */
  forget(resource?: string): void;
}

/** What cannot be shown, in the words of whoever knows why. */
export class Problem extends Error {
  constructor(
    message: string,
    readonly why = "",
    readonly hint = "",
  ) {
    super(message);
  }
}

const MOST_KEPT = 256 * 1024 * 1024; // bytes of answers

/** Returns the source of this page. */
export async function openSource(): Promise<Source> {
  const text = document.getElementById("data")?.textContent;
  if (!text) return new Live();
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Carried(readPacket(await new Response(stream).arrayBuffer()));
}

/** Asks the server, and keeps its answers while there is room. */
class Live implements Source {
  readonly live = true;
  readonly start = {};
  private readonly kept = new Map<string, Promise<ArrayBuffer>>();
  private size = 0;

  has(resource: string, query: Query = {}): boolean {
    return this.kept.has(keyOf(resource, query));
  }

  bytes(resource: string, query: Query = {}): Promise<ArrayBuffer> {
    const key = keyOf(resource, query);
    const known = this.kept.get(key);
    if (known) return known;
    const answer = this.ask(resource, query);
    this.kept.set(key, answer);
    answer.then(
      ({ byteLength }) => this.makeRoom(byteLength),
      () => this.kept.delete(key),
    );
    return answer;
  }

  forget(resource?: string): void {
    if (resource === undefined) this.size = 0;
    for (const key of this.kept.keys()) if (resource === undefined || key.split("\n")[0] === resource) this.kept.delete(key);
  }

  private async ask(resource: string, query: Query): Promise<ArrayBuffer> {
    const response = await fetch(`api/${resource}?${new URLSearchParams(stated(query))}`).catch(() => {
      throw new Problem("the server does not answer", "it was stopped, or this machine slept", "start it again, then reload this page");
    });
    if (!response.headers.has("Problem") && response.ok) return response.arrayBuffer();
    const told = (await response.json().catch(() => ({}))) as { message?: string; why?: string; hint?: string };
    throw new Problem(told.message ?? `the server answers ${response.status}`, told.why, told.hint);
  }

  private makeRoom(added: number): void {
    this.size += added;
    if (this.size > MOST_KEPT) {
      this.kept.clear();
      this.size = 0;
    }
  }
}

/** Has what it was made with. */
class Carried implements Source {
  readonly live = false;
  readonly start: Readonly<Record<string, string>>;

  constructor(private readonly packet: Packet) {
    this.start = packet.about["start"] as Record<string, string>;
  }

  has(resource: string, query: Query = {}): boolean {
    return keyOf(resource, query) in this.packet.arrays;
  }

  async bytes(resource: string, query: Query = {}): Promise<ArrayBuffer> {
    const array = this.packet.arrays[keyOf(resource, query)];
    if (!array) throw new Problem("this is not in the file", "it was exported without", "open the run itself with `traceformer view`");
    return array.data.buffer.slice(array.data.byteOffset, array.data.byteOffset + array.data.byteLength) as ArrayBuffer;
  }

  forget(): void {}
}

/** Returns what a carried answer is found by; `Query.key` in `traceformer/viewer/query.py` makes the same. */
export function keyOf(resource: string, query: Query = {}): string {
  const fields = Object.entries(stated(query)).sort(([a], [b]) => (a < b ? -1 : 1));
  return [resource, ...fields.map(([name, value]) => `${name}=${value}`)].join("\n");
}

function stated(query: Query): Record<string, string> {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  return Object.fromEntries(given.map(([name, value]) => [name, String(value)]));
}
