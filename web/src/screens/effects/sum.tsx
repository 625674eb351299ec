import { shown } from "../../numbers";
import type { AttributionAbout } from "../../payload";
import { useWidth } from "../../ui/axes";

const [HIGH, LABEL, NUMBER, MOST] = [20, 116, 74, 9];

/** A logit as the sum of its parts: the largest one by one, all others together, and what is left. */
export function Sum({ about, values }: { about: AttributionAbout; values: Float32Array }) {
  const [ref, width] = useWidth<HTMLElement>(400);
  const order = about.parts.map((_, index) => index).sort((a, b) => Math.abs(values[b] as number) - Math.abs(values[a] as number));
  const others = order.slice(MOST);
  const rows = [
    ...order.slice(0, MOST).map((index) => ({ name: about.parts[index]?.part ?? "", value: values[index] as number })),
    ...(others.length ? [{ name: `${others.length} others`, value: others.reduce((sum, index) => sum + (values[index] as number), 0) }] : []),
    { name: "remainder", value: about.remainder },
    { name: "logit", value: about.total },
  ];
  const [low, high] = [Math.min(0, ...rows.map(({ value }) => value)), Math.max(0, ...rows.map(({ value }) => value))];
  const room = Math.max(40, width - LABEL - NUMBER);
  const x = (value: number) => LABEL + ((value - low) / (high - low || 1)) * room;
  return (
    <figure class="sum" ref={ref}>
      <svg width={width} height={rows.length * HIGH} role="img" aria-label={rows.map(({ name, value }) => `${name} ${shown(value)}`).join(", ")}>
        {rows.map(({ name, value }, index) => (
          <g key={name} class={`${name === "logit" ? "total" : ""} ${value < 0 ? "less" : "more"}`} transform={`translate(0,${index * HIGH})`}>
            <text class="name" x={LABEL - 10} y={HIGH / 2}>
              {name}
            </text>
            <rect x={Math.min(x(0), x(value))} y={3} width={Math.max(1, Math.abs(x(value) - x(0)))} height={HIGH - 6} />
            <text class="value" x={width} y={HIGH / 2}>
              {shown(value)}
            </text>
          </g>
        ))}
      </svg>
    </figure>
  );
}
