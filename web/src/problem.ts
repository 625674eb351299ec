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

/** A problem as Python tells it. */
export interface Told {
  message?: string;
  why?: string;
  hint?: string;
}

export function problemTold({ message, why, hint }: Told): Problem {
  return new Problem(message ?? "this cannot be shown", why, hint);
}
