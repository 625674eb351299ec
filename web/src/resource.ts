/** Answers in components: loading, there, or a problem in words. */

import { createContext } from "preact";
import { useContext, useEffect, useState } from "preact/hooks";
import { type Packet, readPacket } from "./packet";
import { Problem } from "./problem";
import { keyOf, type Query, type Source } from "./source";

export type Loaded<Value> =
  | { state: "loading"; done?: number; of?: number }
  | { state: "ready"; value: Value }
  | { state: "failed"; problem: Problem };

export const SourceContext = createContext<Source | null>(null);

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

/** Returns a JSON resource; with null for a query nothing is asked for. */
export function useJson<Value>(resource: string, query: Query | null): Loaded<Value> {
  return useAnswer(resource, query, (bytes) => JSON.parse(new TextDecoder().decode(bytes)) as Value & Pending);
}

/** Returns a resource of arrays; with null for a query nothing is asked for. */
export function usePacket(resource: string, query: Query | null): Loaded<Packet> {
  return useAnswer(resource, query, readPacket);
}

function useAnswer<Value>(resource: string, query: Query | null, read: (bytes: ArrayBuffer) => Value): Loaded<Value> {
  const source = useSource();
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
  }, [source, key]);
  return found.key === key ? found.loaded : { state: "loading" };
}

export function asProblem(error: unknown): Problem {
  return error instanceof Problem ? error : new Problem("this cannot be shown", String(error));
}
