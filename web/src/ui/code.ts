/** Texts in code that is shown. */

/** Returns a text as Python writes it. */
export function pythonText(value: unknown): string {
  return JSON.stringify(value);
}

/** Returns a text as a shell takes it for one word. */
export function shellWord(word: string): string {
  return /^[\w./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
