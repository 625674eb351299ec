/** What a notebook runs: the page in a frame of its own, and messages between it and Python, which answers it. */

import type { ToHost, ToPage } from "./host";

interface Model {
  get(name: "page" | "height"): string;
  get(name: "view"): Record<string, string>;
  set(name: "view", value: Record<string, string>): void;
  save_changes(): void;
  send(message: unknown): void;
  on(event: string, run: (message: unknown, buffers?: DataView[]) => void): void;
  off(event: string, run: (message: unknown, buffers?: DataView[]) => void): void;
}

function render({ model, el }: { model: Model; el: HTMLElement }): () => void {
  const frame = document.createElement("iframe");
  frame.setAttribute("sandbox", "allow-scripts allow-downloads");
  frame.srcdoc = model.get("page");
  frame.style.cssText = `width: 100%; height: ${model.get("height")}; border: 0`;
  const post = (message: ToPage, moved: Transferable[] = []) => frame.contentWindow?.postMessage(message, "*", moved);
  const show = () => post({ view: model.get("view") });
  const heard = ({ source, data }: MessageEvent<ToHost>) => {
    if (source !== frame.contentWindow) return;
    if ("ready" in data) show();
    else if ("ask" in data) model.send(data);
    else {
      model.set("view", data.view);
      model.save_changes();
    }
  };
  const answered = (message: unknown, buffers: DataView[] = []) => {
    const [bytes] = buffers;
    const answer = message as { answered: number; told: object };
    if (!bytes) return post(answer);
    const own = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength) as ArrayBuffer;
    post({ answered: answer.answered, bytes: own }, [own]);
  };
  window.addEventListener("message", heard);
  model.on("msg:custom", answered);
  model.on("change:view", show);
  el.append(frame);
  return () => {
    window.removeEventListener("message", heard);
    model.off("msg:custom", answered);
    model.off("change:view", show);
  };
}

export default { render };
