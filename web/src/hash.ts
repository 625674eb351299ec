import { useCallback, useEffect, useState } from "preact/hooks";

export type Hash = Readonly<Record<string, string>>;

/** Returns the page's state, which is its URL's hash (`#beams=A,C&find=fox`), and what changes parts of it. */
export function useHash(): [Hash, (changes: Record<string, string | null>) => void] {
  const [hash, setHash] = useState(read);
  useEffect(() => {
    const reread = () => setHash(read());
    window.addEventListener("hashchange", reread);
    return () => window.removeEventListener("hashchange", reread);
  }, []);
  const change = useCallback((changes: Record<string, string | null>) => {
    setHash((old) => {
      const next = Object.fromEntries(
        Object.entries({ ...old, ...changes }).filter((entry): entry is [string, string] => Boolean(entry[1])),
      );
      write(next);
      return next;
    });
  }, []);
  return [hash, change];
}

function read(): Hash {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

function write(hash: Hash): void {
  const text = new URLSearchParams(hash).toString().replaceAll("%2C", ",");
  try {
    history.replaceState(null, "", text ? `#${text}` : location.href.replace(/#.*$/, ""));
  } catch {
    // A frame without an origin of its own (in a notebook) has no address to keep; its state lives as long as it does.
  }
}
