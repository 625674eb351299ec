import { useLayoutEffect, useRef } from "preact/hooks";
import type { Binding } from "../keyboard";

/** The list of keys, made from the same table that handles them. */
export function Help({ bindings, close }: { bindings: Binding[]; close: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => dialog.current?.showModal(), []);
  return (
    <dialog ref={dialog} class="help" aria-label="Keys" onClose={close} onClick={close}>
      <h2>Keys</h2>
      <dl>
        {bindings.map(({ keys, written, does }) => (
          <div key={does}>
            <dt>
              {(written ? [written] : keys).map((key) => (
                <kbd key={key}>{NAMES[key] ?? key}</kbd>
              ))}
            </dt>
            <dd>{does}</dd>
          </div>
        ))}
      </dl>
      <button type="button">Close</button>
    </dialog>
  );
}

const NAMES: Record<string, string> = {
  ArrowLeft: "←",
  ArrowRight: "→",
  ArrowUp: "↑",
  ArrowDown: "↓",
  Escape: "Esc",
  " ": "Space",
};
