/** Answers in components: loading, there, or a problem in words. */

import { createContext } from "preact";
import { useContext, useEffect, useRef, useState } from "preact/hooks";
import { type Packet, readPacket } from "./packet";
import { Problem } from "./problem";
import { keyOf, type Query, REPLACED, type Source } from "./source";

export type Loaded<Value> =
  | { state: "loading"; done?: number; of?: number }
  | { state: "ready"; value: Value }
  | { state: "failed"; problem: Problem };

export const SourceContext = createContext<Source | null>(null);

/** Which version of the run is shown: with another one every answer is asked for again, and the old shown until then. */
export const VersionContext = createContext("");

export function useSource(): Source {
  const source = useContext(SourceContext);
  if (!source) throw new Error("no source");
  return source;
}

/** What a resource answers while it is still at work: asked again until it is done. */
interface Pending {
  pending?: { done: number; of: number };
}

const AGAIN = 400; // milliseconds
const FOLLOWED = 2000; // milliseconds

/** Returns a JSON resource; with null for a query nothing is asked for. */
export function useJson<Value>(resource: string, query: Query | null): Loaded<Value> {
  return useAnswer(resource, query, readJson<Value & Pending>);
}

/** Returns a resource of arrays, whose `about` may say that it is still at work; with null nothing is asked for. */
export function usePacket(resource: string, query: Query | null): Loaded<Packet> {
  return useAnswer(resource, query, (bytes) => {
    const packet = readPacket(bytes);
    const { pending } = packet.about as Pending;
    return pending ? { ...packet, pending } : packet;
  });
}

/**
 * Returns a JSON resource that changes, as a run that is being written does: asked for again while `unfinished` says so,
 * when it is come back to, and whenever the window is looked at. Once its version is another one, all that was answered before is forgotten.
 */
export function useFollowed<Value>(
  resource: string,
  query: Query,
  unfinished: (value: Value) => boolean,
): Loaded<Value> {
  const source = useSource();
  const key = keyOf(resource, query);
  const [found, setFound] = useState<{ key: string | null; loaded: Loaded<Value> }>({ key: null, loaded: { state: "loading" } });
  useEffect(() => {
    let known: Value | null = null;
    let timer = 0;
    let wanted = true;
    const take = (value: Value) => {
      if (!wanted) return;
      if (known && versionOf(known) !== versionOf(value)) source.forget();
      known = value;
      setFound({ key, loaded: { state: "ready", value } });
      if (source.live && unfinished(value)) timer = window.setTimeout(again, FOLLOWED);
    };
    const fail = (error: unknown) => {
      if (!wanted) return;
      // What was there is still shown when the server does not answer for once.
      if (known) timer = window.setTimeout(again, FOLLOWED);
      else setFound({ key, loaded: { state: "failed", problem: asProblem(error) } });
    };
    const ask = () => source.bytes(resource, query).then(readJson<Value>).then(take, fail);
    const again = () => {
      window.clearTimeout(timer);
      source.forget(resource);
      void ask();
    };
    again();
    if (source.live) for (const event of ["focus", REPLACED]) window.addEventListener(event, again);
    return () => {
      wanted = false;
      window.clearTimeout(timer);
      for (const event of ["focus", REPLACED]) window.removeEventListener(event, again);
    };
  }, [source, key]);
  return found.key === key ? found.loaded : { state: "loading" };
}

function versionOf(value: unknown): string | undefined {
  return (value as { version?: string }).version;
}

function readJson<Value>(bytes: ArrayBuffer): Value {
  return JSON.parse(new TextDecoder().decode(bytes)) as Value;
}

function useAnswer<Value>(resource: string, query: Query | null, read: (bytes: ArrayBuffer) => Value): Loaded<Value> {
  const source = useSource();
  const version = useContext(VersionContext);
  const key = query && keyOf(resource, query);
  const [found, setFound] = useState<{ key: string | null; loaded: Loaded<Value> }>({ key: null, loaded: { state: "loading" } });
  useEffect(() => {
    if (!query) return;
    let wanted = true;
    let timer = 0;
    const tell = (loaded: Loaded<Value>) => wanted && setFound({ key, loaded });
    const ask = () =>
      source.bytes(resource, query).then(
        (bytes) => {
          const value = read(bytes);
          const { pending } = value as Pending;
          if (!pending) return tell({ state: "ready", value });
          source.forget(resource);
          tell({ state: "loading", ...pending });
          timer = window.setTimeout(ask, AGAIN);
        },
        (error: unknown) => tell({ state: "failed", problem: asProblem(error) }),
      );
    void ask();
    return () => {
      wanted = false;
      window.clearTimeout(timer);
    };
  }, [source, key, version]);
  return found.key === key ? found.loaded : { state: "loading" };
}

/** Returns the answer before while the next one is loading, so that nothing jumps and the focus stays; and whether it is that. */
export function useLast<Value>(loaded: Loaded<Value>): readonly [Loaded<Value>, boolean] {
  const last = useRef(loaded);
  if (loaded.state !== "loading") last.current = loaded;
  const before = loaded.state === "loading" && last.current.state === "ready";
  return [before ? last.current : loaded, before];
}

export function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem("this cannot be shown", String(error));
}
