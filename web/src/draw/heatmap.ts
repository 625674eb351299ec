/**
 * Draws a matrix into a canvas: each pixel has the colour of one number, nothing is blended.
 *
 * 1. `levelFor` gives the matrix itself, or what stands for it where a pixel covers several cells.
 * 2. Its numbers are a texture. The shader finds a pixel's number, where that lies in the range, and its colour. Of
 *    bytes there are 256, so that their colours are found before.
 * 3. Without WebGL 2, and of matrices that no texture holds, `plainly` does the same pixel by pixel.
 */

import { type Level, levelFor, type Matrix } from "./levels";

export type Scale = "linear" | "sqrt" | "log";

/** How numbers become colours. A number that is none is not painted. */
export interface Colouring {
  palette: Uint8Array;
  /** Of the least and the greatest colour; the lower one of a log scale is above zero, one below zero is −greatest. */
  range: readonly [number, number];
  scale: Scale;
}

/** Which cells the canvas covers: its upper left corner, and how many columns and rows. */
export interface Area {
  column: number;
  row: number;
  columns: number;
  rows: number;
}

export interface Painter {
  /** `webgl2`, or `2d` where that is missing. */
  readonly kind: "webgl2" | "2d";
  draw(matrix: Matrix, area: Area, colouring: Colouring): void;
  dispose(): void;
}

/**
 * Returns what draws into a canvas.
 *
 * A canvas is of one kind for ever: where its graphics card goes away, `lost` is told, for another to take its place.
 */
export function painterOf(canvas: HTMLCanvasElement, plain: boolean, lost: () => void): Painter {
  const gl = plain ? null : canvas.getContext("webgl2", { alpha: true, antialias: false, preserveDrawingBuffer: true });
  return gl ? new Shaded(canvas, gl, lost) : new Plain(canvas);
}

/** Returns where a number lies on a palette, from 0 to 255; NaN for none. Roots of a range on both sides of zero have its sign. */
export function stepOf(value: number, { range: [low, high], scale }: Colouring): number {
  const part = scale === "log" ? Math.log(Math.max(value, low) / low) / Math.log(high / low) : (value - low) / (high - low);
  const bounded = Math.min(1, Math.max(0, part));
  const side = 2 * bounded - 1;
  const rooted = low < 0 ? 0.5 + 0.5 * Math.sign(side) * Math.sqrt(Math.abs(side)) : Math.sqrt(bounded);
  return Math.floor((scale === "sqrt" ? rooted : bounded) * 255 + 0.5);
}

const VERTEX = `#version 300 es
void main() {
  gl_Position = vec4(gl_VertexID == 1 ? 3.0 : -1.0, gl_VertexID == 2 ? 3.0 : -1.0, 0.0, 1.0);
}`;

/** Where a number lies in its range; on a processor without a graphics card each operation counts. */
const PARTS: Record<Scale | "byte", string> = {
  byte: "value",
  linear: "(value - range.x) * range.y",
  sqrt: "sqrt(max((value - range.x) * range.y, 0.0))",
  log: "log(max(value, range.x) / range.x) * range.y",
};
/** The same of a range on both sides of zero. */
const SIGNED = "0.5 + 0.5 * sign(value) * sqrt(min(abs(value * range.y * 2.0), 1.0))";

const fragment = (part: string) => `#version 300 es
precision highp float;
precision highp int;
uniform highp sampler2D numbers;
uniform highp sampler2D palette;
uniform vec4 area;
uniform vec2 range;
out vec4 colour;
void main() {
  ivec2 at = ivec2(floor(area.xy + gl_FragCoord.xy * area.zw));
  float value = texelFetch(numbers, at, 0).r;
  colour = isnan(value) ? vec4(0.0) : texelFetch(palette, ivec2(int(clamp(${part}, 0.0, 1.0) * 255.0 + 0.5), 0), 0);
}`;

class Shaded implements Painter {
  readonly kind = "webgl2";
  private readonly programs = new Map<string, Program>();
  private readonly most: number;
  private colours = "";
  /** The levels of one matrix that have been drawn: there is no going back to another's. */
  private readonly textures = new Map<Level, WebGLTexture>();
  private matrix: Matrix["data"] | null = null;
  private readonly told: (event: Event) => void;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly gl: WebGL2RenderingContext,
    lost: () => void,
  ) {
    this.told = (event) => {
      event.preventDefault();
      lost();
    };
    canvas.addEventListener("webglcontextlost", this.told);
    this.most = gl.getParameter(gl.MAX_TEXTURE_SIZE) as number;
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.texture(1); // stays bound: the palette
  }

  draw(matrix: Matrix, area: Area, colouring: Colouring): void {
    const { gl, canvas } = this;
    const { width, height } = canvas;
    const { range, scale } = colouring;
    const level = this.fitting(matrix, area);
    const bytes = level.data instanceof Uint8Array;
    const program = this.use(bytes ? PARTS.byte : range[0] < 0 && scale === "sqrt" ? SIGNED : PARTS[scale]);
    this.bind(matrix, level);
    this.colour(bytes ? bytesColoured(matrix.most, colouring) : colouring.palette);
    gl.viewport(0, 0, width, height);
    const [across, down] = [area.columns / width / level.block, area.rows / height / level.block];
    // A canvas counts its rows from below.
    gl.uniform4f(program.area, area.column / level.block, area.row / level.block + height * down, across, -down);
    gl.uniform2f(program.range, range[0], scale === "log" ? 1 / Math.log(range[1] / range[0]) : 1 / (range[1] - range[0]));
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  dispose(): void {
    this.canvas.removeEventListener("webglcontextlost", this.told);
    this.gl.getExtension("WEBGL_lose_context")?.loseContext(); // a page has about sixteen; those collected count as well
  }

  private use(part: string): Program {
    const { gl } = this;
    const made = this.programs.get(part) ?? this.compiled(part);
    this.programs.set(part, made);
    gl.useProgram(made.program);
    return made;
  }

  private compiled(part: string): Program {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, fragment(part)]] as const) {
      const shader = gl.createShader(kind);
      if (!shader) continue; // the context is lost already, which is told
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.uniform1i(gl.getUniformLocation(program, "numbers"), 0);
    gl.uniform1i(gl.getUniformLocation(program, "palette"), 1);
    return { program, area: gl.getUniformLocation(program, "area"), range: gl.getUniformLocation(program, "range") };
  }

  /** Hands 256 colours over, unless they are there. */
  private colour(palette: Uint8Array): void {
    const { gl } = this;
    const key = palette.join();
    if (this.colours === key) return;
    this.colours = key;
    gl.activeTexture(gl.TEXTURE1);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, 256, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, palette);
  }

  /** Returns the level for an area, a coarser one where no texture holds that. */
  private fitting(matrix: Matrix, area: Area): Level {
    let cells = Math.max(area.columns / this.canvas.width, area.rows / this.canvas.height);
    let level = levelFor(matrix, cells);
    while (Math.max(level.rows, level.columns) > this.most) {
      cells = 2 * level.block;
      level = levelFor(matrix, cells);
    }
    return level;
  }

  private bind(matrix: Matrix, level: Level): void {
    const { gl } = this;
    if (this.matrix !== matrix.data) {
      for (const texture of this.textures.values()) gl.deleteTexture(texture);
      this.textures.clear();
      this.matrix = matrix.data;
    }
    const known = this.textures.get(level);
    gl.activeTexture(gl.TEXTURE0);
    if (known) return gl.bindTexture(gl.TEXTURE_2D, known);
    this.textures.set(level, this.texture(0));
    const { columns, rows, data } = level;
    if (data instanceof Uint8Array) gl.texImage2D(gl.TEXTURE_2D, 0, gl.R8, columns, rows, 0, gl.RED, gl.UNSIGNED_BYTE, data);
    else gl.texImage2D(gl.TEXTURE_2D, 0, gl.R32F, columns, rows, 0, gl.RED, gl.FLOAT, data);
  }

  /** Returns a new texture, bound to a unit. */
  private texture(unit: number): WebGLTexture {
    const { gl } = this;
    const texture = gl.createTexture();
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
    for (const wrap of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, wrap, gl.CLAMP_TO_EDGE);
    return texture;
  }
}

interface Program {
  program: WebGLProgram;
  area: WebGLUniformLocation | null;
  range: WebGLUniformLocation | null;
}

/** Returns the colour of each byte that stands for a root. */
function bytesColoured(most: number, colouring: Colouring): Uint8Array {
  const colours = new Uint8Array(768);
  for (let byte = 0; byte < 256; byte++) {
    const step = 3 * stepOf(most * (byte / 255) ** 2, colouring);
    colours.set(colouring.palette.subarray(step, step + 3), 3 * byte);
  }
  return colours;
}

class Plain implements Painter {
  readonly kind = "2d";
  private readonly context: CanvasRenderingContext2D | null;

  constructor(private readonly canvas: HTMLCanvasElement) {
    this.context = canvas.getContext("2d");
  }

  draw(matrix: Matrix, area: Area, colouring: Colouring): void {
    const { width, height } = this.canvas;
    if (this.context && width && height) this.context.putImageData(plainly(width, height, matrix, area, colouring), 0, 0);
  }

  dispose(): void {}
}

/** Returns the picture that the shader draws. */
function plainly(width: number, height: number, matrix: Matrix, area: Area, colouring: Colouring): ImageData {
  const [across, down] = [area.columns / width, area.rows / height];
  const level = levelFor(matrix, Math.max(across, down));
  const image = new ImageData(width, height);
  const bytes = level.data instanceof Uint8Array;
  const palette = bytes ? bytesColoured(matrix.most, colouring) : colouring.palette;
  const columns = Int32Array.from({ length: width }, (_, x) => Math.floor((area.column + (x + 0.5) * across) / level.block));
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor((area.row + (y + 0.5) * down) / level.block);
    for (let x = 0; x < width; x++, at += 4) {
      const column = columns[x]!;
      if (row < 0 || column < 0 || row >= level.rows || column >= level.columns) continue;
      const value = level.data[row * level.columns + column]!;
      const step = bytes ? value : stepOf(value, colouring);
      if (Number.isNaN(step)) continue;
      image.data[at] = palette[3 * step]!;
      image.data[at + 1] = palette[3 * step + 1]!;
      image.data[at + 2] = palette[3 * step + 2]!;
      image.data[at + 3] = 255;
    }
  }
  return image;
}
