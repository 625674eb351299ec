/** Returns the end of a path, by which it is known; a name on the Hub (`owner/model`) is left whole. */
export function shortName(name: string): string {
  const parts = name.split("/").filter(Boolean);
  return parts.length > 2 || name.startsWith("/") ? `…/${parts.slice(-2).join("/")}` : name;
}
