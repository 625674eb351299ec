/**
 * A matrix at half its size, at a quarter, and so on, for when a pixel covers many cells.
 *
 * A block is shown by the one of its numbers that is farthest from zero, so that a thin line of strong attention stays
 * as strong as it is however small the picture; a mean would let it fade. Blocks without any number have none (NaN).
 */

/** Numbers row after row: of each cell, or of blocks of `block` x `block` cells. */
export interface Matrix {
  /** In cells. */
  rows: number;
  columns: number;
  block: number;
  /** Numbers themselves, or bytes: 255 times the square root of a number's share of `most`. */
  data: Float32Array | Uint8Array;
  /** What the byte 255 stands for. */
  most: number;
}

export interface Level {
  rows: number;
  columns: number;
  /** How many cells a number stands for, in each direction. */
  block: number;
  data: Float32Array | Uint8Array;
}

const known = new WeakMap<ArrayBufferLike, Level[]>();

/** Returns the coarsest level of which no number is passed over where a pixel covers so many cells. */
export function levelFor(matrix: Matrix, cellsPerPixel: number): Level {
  const levels = known.get(matrix.data.buffer) ?? [wholeOf(matrix)];
  known.set(matrix.data.buffer, levels);
  let level = levels[0] ?? wholeOf(matrix);
  for (let index = 1; level.block < cellsPerPixel - 1e-6 && level.rows * level.columns > 1; index++) {
    levels[index] ??= halved(level);
    level = levels[index] ?? level;
  }
  return level;
}

function wholeOf({ rows, columns, block, data }: Matrix): Level {
  return { rows: Math.ceil(rows / block), columns: Math.ceil(columns / block), block, data };
}

function halved({ rows, columns, block, data }: Level): Level {
  const [height, width] = [Math.ceil(rows / 2), Math.ceil(columns / 2)];
  const made = data instanceof Uint8Array ? new Uint8Array(height * width) : new Float32Array(height * width);
  const farthest = data instanceof Uint8Array ? Math.max : strongest;
  for (let row = 0; row < height; row++) {
    const upper = 2 * row * columns;
    const lower = 2 * row + 1 < rows ? upper + columns : upper;
    for (let column = 0; column < width; column++) {
      const left = 2 * column;
      const right = left + 1 < columns ? left + 1 : left;
      made[row * width + column] = farthest(
        farthest(data[upper + left]!, data[upper + right]!),
        farthest(data[lower + left]!, data[lower + right]!),
      );
    }
  }
  return { rows: height, columns: width, block: 2 * block, data: made };
}

/** Returns the number that is farther from zero; any number, if the other is none. */
function strongest(a: number, b: number): number {
  if (Number.isNaN(a)) return b;
  return Math.abs(b) > Math.abs(a) ? b : a;
}
