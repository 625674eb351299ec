/** Where a page gets what it shows: from the server that sent it, or out of itself. */

import { askHost, isEmbedded, startOfHost } from "./host";
import { type Packet, readPacket } from "./packet";
import { Problem, problemTold } from "./problem";

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

/** What the window is told when an answer was of a run that has taken the place of another one. */
export const REPLACED = "replaced";

const MOST_KEPT = 256 * 1024 * 1024; // bytes of answers

/** Returns the source of this page. */
export async function openSource(): Promise<Source> {
  if (isEmbedded) return Answered.byHost();
  const text = document.getElementById("data")?.textContent;
  if (!text) return Answered.byServer();
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Carried(readPacket(await new Response(stream).arrayBuffer()));
}

/** Is answered by the server, or by the notebook around the page; keeps answers while there is room. */
class Answered implements Source {
  readonly live = true;
  private readonly kept = new Map<string, Promise<ArrayBuffer>>();
  private size = 0;
  /** When each run was begun, as the server said. */
  private readonly begun = new Map<string, string>();

  private constructor(
    private readonly ask: (resource: string, query: Record<string, string>) => Promise<ArrayBuffer>,
    readonly start: Readonly<Record<string, string>>,
  ) {}

  static byServer(): Answered {
    const source = new Answered(async (resource, query) => {
      const { bytes, begun } = await askServer(resource, query);
      if (source.isOfAnother(query, begun) && resource !== "run") {
        window.dispatchEvent(new Event(REPLACED));
        throw new Problem("this is another run now", "it took the place of the one that is shown", "a moment: it is read anew");
      }
      return bytes;
    }, {});
    return source;
  }

  static async byHost(): Promise<Answered> {
    return new Answered(askHost, await startOfHost());
  }

  has(resource: string, query: Query = {}): boolean {
    return this.kept.has(keyOf(resource, query));
  }

  bytes(resource: string, query: Query = {}): Promise<ArrayBuffer> {
    const key = keyOf(resource, query);
    const known = this.kept.get(key);
    if (known) return known;
    const answer = this.ask(resource, stated(query));
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

  /** Returns whether a run is another one than before; then nothing is kept that was answered of the one before. */
  private isOfAnother(query: Record<string, string>, begun: string[]): boolean {
    const runs = [query["run"], query["run2"]].filter((name) => name !== undefined);
    const replaced = runs.some((name, place) => (this.begun.get(name) ?? begun[place]) !== begun[place]);
    runs.forEach((name, place) => this.begun.set(name, begun[place] ?? ""));
    if (replaced) this.forget();
    return replaced;
  }

  private makeRoom(added: number): void {
    this.size += added;
    if (this.size > MOST_KEPT) {
      this.kept.clear();
      this.size = 0;
    }
  }
}

async function askServer(resource: string, query: Record<string, string>): Promise<{ bytes: ArrayBuffer; begun: string[] }> {
  const response = await fetch(`api/${resource}?${new URLSearchParams(query)}`).catch(() => {
    throw new Problem("the server does not answer", "it was stopped, or this machine slept", "start it again, then reload this page");
  });
  if (response.ok && !response.headers.has("Problem")) {
    return { bytes: await response.arrayBuffer(), begun: (response.headers.get("Begun") ?? "").split(",") };
  }
  throw problemTold(await response.json().catch(() => ({ message: `the server answers ${response.status}` })));
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
    if (!array) throw new Problem("this is not in the file", "it was exported without, or the run does not hold it", "open the run itself: traceformer view RUN");
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
