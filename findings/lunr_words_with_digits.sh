#!/bin/sh
# lunr 2.3.9 (the search of mkdocs-material 9.8.2, too): an index of words with digits loses words, and searches fail.
# Guess: a word that was added is found, whatever other words there are.
# Seen: states of the index's automaton are taken for equal by a key that puts labels and numbers of states together
#       without a mark between, so that the label "2" before state 3 reads like the end of state 23. With 709 words beside it,
#       "resid1norm" is found by nobody, and "resid*" is a TypeError. One word fewer, and both find it.
# Needs node and npm. Exits 0 while the behaviour is seen, 1 when it is not.
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund lunr@2.3.9
cat > try.cjs <<'JS'
const lunr = require("lunr");

function found(n) {
  lunr.TokenSet._nextId = 1; // as in a page that has just been loaded
  const facts = Array.from({ length: n }, (_, i) => `fact${i}`).join(" ");
  const index = lunr(function () {
    this.field("text");
    this.pipeline.reset();
    this.searchPipeline.reset();
    ["block1 block2", facts, "resid1norm"].forEach((text, id) => this.add({ id, text }));
  });
  return ["resid1norm", "resid*"].map((query) => {
    try {
      return index.search(query).length;
    } catch (error) {
      return error.name;
    }
  });
}

console.log("lunr", lunr.version, "| 708 facts:", found(708), "| 709 facts:", found(709));
const seen = JSON.stringify([found(708), found(709)]);
process.exit(seen === '[[1,1],[0,"TypeError"]]' ? 0 : 1);
JS
node try.cjs
