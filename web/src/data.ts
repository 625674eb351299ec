import type { Payload } from "./payload";

/** Returns the payload that the page carries: JSON, gzipped, in base64. */
export async function readPayload(): Promise<Payload> {
  const text = document.getElementById("payload")?.textContent;
  if (!text) throw new Error("this page carries no data");
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(stream).json()) as Payload;
}
