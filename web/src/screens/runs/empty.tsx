/** A folder without runs: what would make one. */
export function Empty({ folder }: { folder: string }) {
  const place = folder || "traces";
  return (
    <div class="runs empty">
      <h1>No runs yet</h1>
      <p title={place}>{place} holds none. The first one appears here as soon as it is begun:</p>
      <pre>traceformer extract --model byte --dataset demo --out_dir {quoted(`${place}/first`)}</pre>
      <p>or in Python</p>
      <pre>
        {[
          "import traceformer as tf",
          "",
          'model = tf.load_model("byte")  # or "gpt2", a folder, or a model of your own',
          `tf.record(model, ["The cat sat on the mat."], out=${JSON.stringify(`${place}/first`)})`,
        ].join("\n")}
      </pre>
    </div>
  );
}

function quoted(path: string): string {
  return /^[\w./-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`;
}
