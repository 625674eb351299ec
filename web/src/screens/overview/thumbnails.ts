import { useEffect, useState } from "preact/hooks";
import { pixels, readPacket } from "../../packet";
import type { AtlasAbout } from "../../payload";
import { asProblem, useSource } from "../../resource";
import type { Problem } from "../../problem";

const AT_ONCE = 2; // requests under way

export interface Thumbnails {
  /** Those that are there, head after head in the order of layers and heads; the others are zero. */
  pixels: Uint8Array;
  drawn: Uint8Array;
  count: number;
  problem: Problem | null;
}

/** Returns the thumbnails of an example's attention as they come in, the first layers first. */
export function useThumbnails(run: string, example: number, atlas: AtlasAbout): Thumbnails {
  const source = useSource();
  const count = atlas.groups.at(-1)?.[1] ?? 0;
  const size = atlas.rows * atlas.columns;
  const key = `${run} ${example} ${atlas.name}`;
  const [found, setFound] = useState({ key, ...nothing(count, size) });
  useEffect(() => {
    let wanted = true;
    const made = nothing(count, size);
    const waiting = [...atlas.groups];
    const next = async (): Promise<void> => {
      const group = waiting.shift();
      if (!group || !wanted) return;
      const [from, to] = group;
      const bytes = await source.bytes("thumbnails", { run, ex: example, attn: atlas.name, from, to });
      made.pixels.set(pixels(readPacket(bytes), "pixels"), from * size);
      made.drawn.fill(1, from, to);
      made.count += to - from;
      if (wanted) setFound({ key, ...made });
      return next();
    };
    const failed = (error: unknown) => wanted && setFound({ key, ...made, problem: asProblem(error) });
    for (let index = 0; index < AT_ONCE; index++) next().catch(failed);
    return () => {
      wanted = false;
    };
  }, [source, key]);
  return found.key === key ? found : nothing(count, size);
}

function nothing(count: number, size: number): Thumbnails {
  return { pixels: new Uint8Array(count * size), drawn: new Uint8Array(count), count: 0, problem: null };
}
