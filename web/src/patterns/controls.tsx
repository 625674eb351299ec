import type { Scale } from "../draw/heatmap";
import type { AttentionAbout, RunAbout } from "../payload";
import { useView } from "../view";
import type { Look } from "./map";
import { stepped } from "./pattern";
import { Stepper } from "./stepper";

const SCALES: Scale[] = ["sqrt", "linear", "log"];

/** Returns how weights become colours, as the address says. */
export function useLook(): Look {
  const [view] = useView();
  return { scale: SCALES.find((scale) => scale === view["head.scale"]) ?? "sqrt", stretched: view["head.range"] === "largest" };
}

interface Props {
  run: RunAbout;
  attention: AttentionAbout;
  layer: number;
  head: number;
}

/** Which head is shown, and how its weights become colours. */
export function HeadControls({ run, attention, layer, head }: Props) {
  const [, change] = useView();
  const { scale, stretched } = useLook();
  return (
    <>
      {run.attentions.length > 1 && (
        <label>
          attention{" "}
          <select value={attention.name} onChange={(event) => change({ attn: event.currentTarget.value, layer: null, head: null, q: null, k: null })}>
            {run.attentions.map(({ name }) => (
              <option key={name} value={name}>
                {name}
              </option>
            ))}
          </select>
        </label>
      )}
      <Stepper name="layer" value={layer} numbers={attention.layers} keys={["↑", "↓"]} onChange={(to) => change({ layer: to })} />
      <Stepper name="head" value={head} numbers={attention.heads} keys={["←", "→"]} onChange={(to) => change({ head: to })} />
      <label title="How weights become colours (s)">
        scale{" "}
        <select value={scale} onChange={(event) => change({ "head.scale": event.currentTarget.value })}>
          {SCALES.map((name) => (
            <option key={name} value={name}>
              {SCALE_NAMES[name]}
            </option>
          ))}
        </select>
      </label>
      <label title="What the strongest colour stands for">
        <input
          type="checkbox"
          checked={stretched}
          onChange={(event) => change({ "head.range": event.currentTarget.checked ? "largest" : null })}
        />{" "}
        up to the largest
      </label>
    </>
  );
}

const SCALE_NAMES: Record<Scale, string> = { sqrt: "square root", linear: "linear", log: "logarithm" };

/** Returns the keys that step through heads and scales. */
export function useHeadKeys(attention: AttentionAbout, layer: number, head: number) {
  const [, change] = useView();
  const { scale } = useLook();
  return [
    {
      keys: ["ArrowLeft", "ArrowRight", ",", "."],
      does: "previous and next head",
      run: (key: string) => change({ head: stepped(attention.heads, head, key === "ArrowRight" || key === "." ? 1 : -1) }),
    },
    {
      keys: ["ArrowUp", "ArrowDown", "<", ">"],
      does: "previous and next layer",
      run: (key: string) => change({ layer: stepped(attention.layers, layer, key === "ArrowDown" || key === ">" ? 1 : -1) }),
    },
    { keys: ["s"], does: "scale: square root, linear, logarithm", run: () => change({ "head.scale": SCALES[(SCALES.indexOf(scale) + 1) % 3] ?? null }) },
    { keys: ["Arrows"], does: "in a heat map: another cell; with Shift ten on" },
    { keys: ["+", "-", "f"], does: "in a heat map: larger, smaller, all of it" },
    { keys: ["Enter"], does: "in a heat map: close to the selected cell" },
  ];
}
