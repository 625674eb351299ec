import { useState } from "preact/hooks";
import { shown } from "../../numbers";
import { useWidth } from "../../ui/axes";
import { type Cell, COLOURS, type Colour, sentence } from "./lens";

interface Props {
  cells: Cell[];
  layers: number[];
  positions: number[];
  /** The text's tokens at these positions. */
  tokens: string[];
  colour: Colour;
  selected: { layer: number | null; q: number | null };
  onSelect: (layer: number, position: number) => void;
}

const [LEFT, WIDE, HIGH, RULER, GAP, LEGEND] = [34, 40, 24, 36, 16, 26];

/** The likeliest token of each layer and position, in as many bands below one another as the window needs. */
export function LensGrid({ cells, layers, positions, tokens, colour, selected, onSelect }: Props) {
  const [ref, width] = useWidth<HTMLDivElement>();
  const [over, setOver] = useState<Cell | null>(null);
  const bands = Math.ceil(positions.length / Math.max(1, Math.floor((width - LEFT) / WIDE)));
  const perBand = Math.ceil(positions.length / bands); // bands as alike as can be
  const wide = Math.min(64, (width - LEFT) / perBand);
  const bandHeight = RULER + layers.length * HIGH + GAP;
  const value = ({ top, entropy, targetProbability }: Cell) =>
    colour === "entropy" ? entropy : colour === "target" ? targetProbability : (top[0]?.probability ?? NaN);
  const highest = colour === "entropy" ? Math.max(1e-6, ...cells.map(value).filter((own) => !Number.isNaN(own))) : 1;
  const at = (row: number, column: number): Cell | undefined => cells[row * positions.length + column];
  const isSelected = (cell: Cell) => cell.position === selected.q && cell.layer === selected.layer;
  const under = (event: MouseEvent): Cell | null => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const [x, y] = [event.clientX - box.left - LEFT, event.clientY - box.top];
    const [band, column] = [Math.floor(y / bandHeight), Math.floor(x / wide)];
    const row = Math.floor((y - band * bandHeight - RULER) / HIGH);
    if (column < 0 || column >= perBand || row < 0 || row >= layers.length) return null;
    return band * perBand + column < positions.length ? (at(row, band * perBand + column) ?? null) : null;
  };
  const told = over ?? cells.find(isSelected) ?? null;
  return (
    <div ref={ref}>
      <svg
        class="grid"
        width={width}
        height={bands * bandHeight + LEGEND}
        role="img"
        aria-label={`Likeliest next token of ${layers.length} layers at ${positions.length} positions`}
        onPointerMove={(event) => setOver(under(event))}
        onPointerLeave={() => setOver(null)}
        onClick={(event) => {
          const cell = under(event);
          if (cell) onSelect(cell.layer, cell.position);
        }}
      >
        {Array.from({ length: bands }, (_, band) => (
          <g key={band} transform={`translate(${LEFT},${band * bandHeight})`}>
            {positions.slice(band * perBand, (band + 1) * perBand).map((position, column) => (
              <g key={position} class={position === selected.q ? "ruler selected" : "ruler"} transform={`translate(${(column + 0.5) * wide},0)`}>
                <text y={12}>{cut(tokens[band * perBand + column] ?? "", wide)}</text>
                <text class="position" y={27}>
                  {position}
                </text>
              </g>
            ))}
            {layers.map((layer, row) => (
              <g key={layer} transform={`translate(0,${RULER + row * HIGH})`}>
                <text class="layer" x={-8} y={HIGH / 2}>
                  L{layer}
                </text>
                {positions.slice(band * perBand, (band + 1) * perBand).map((position, column) => {
                  const cell = at(row, band * perBand + column);
                  if (!cell) return null;
                  const text = cell.top[0]?.text ?? "";
                  const right = cell.targetRank === 1;
                  return (
                    <g key={position} class={`cell${right ? " right" : ""}${isSelected(cell) ? " selected" : ""}`} transform={`translate(${column * wide},0)`}>
                      <rect x={1} y={1} width={wide - 2} height={HIGH - 2} rx={2} fill-opacity={Math.min(1, (value(cell) || 0) / highest)} />
                      <text x={wide / 2} y={HIGH / 2}>
                        {cut(text, wide)}
                      </text>
                    </g>
                  );
                })}
              </g>
            ))}
          </g>
        ))}
        <g class="key" transform={`translate(${LEFT},${bands * bandHeight + 4})`}>
          {Array.from({ length: 20 }, (_, step) => (
            <rect key={step} x={step * 6} y={2} width={6} height={8} fill-opacity={(step + 0.5) / 20} />
          ))}
          <text x={130} y={6}>
            {`${COLOURS[colour]}, 0 to ${colour === "entropy" ? shown(highest) : 1}`}
          </text>
          <text x={width - LEFT} y={6} class="right">
            bold: the token that came next
          </text>
        </g>
      </svg>
      <p class="told" aria-live="polite">
        {told ? sentence(told) : "Point at a cell, or choose it with the arrow keys."}
      </p>
    </div>
  );
}

/** A token as far as a cell has room. */
function cut(text: string, wide: number): string {
  const characters = [...text];
  const room = Math.floor((wide - 4) / 7);
  return characters.length > room ? `${characters.slice(0, room - 1).join("")}…` : text;
}
