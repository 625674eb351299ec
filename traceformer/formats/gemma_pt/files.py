"""One of the Gemma capture's .pt files, in any of its variants, as arrays of an example."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from traceformer.errors import SelectionError, Unreadable
from traceformer.formats.gemma_pt.write import INTERNALS, PT_FORMAT, RESIDUAL
from traceformer.formats.incoming import UNKNOWN
from traceformer.formats.outgoing import key_of
from traceformer.formats.rows import check_plain, read_types, token_ids
from traceformer.shapes import Float
from traceformer.sites import ArrayKey, ArraySpec, Stack

__all__ = ["PtFile"]

_SITES = {**RESIDUAL, **{name: site for names in INTERNALS.values() for name, site in names.items()}}
_CLOSE = 1e-3  # of the largest number: what a pass over a longer text may change in half precision


class _Words(NamedTuple):
    """What a prompt or a response says; `ids` is None where a file does not tell them."""

    text: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...] | None

    @classmethod
    def of(cls, data: Mapping[str, Any], name: str, path: Path) -> "_Words":
        """Returns the words of a section, which stand in it, or beside it with its name before theirs."""
        section: Mapping[str, Any] = data[name]
        text, tokens, ids = (
            section.get(what, data.get(f"{name}_{what}", default))
            for what, default in (("text", ""), ("tokens", None), ("token_ids", None))
        )
        if not isinstance(tokens, list | None) or not isinstance(ids, list | None):
            raise Unreadable(f"{path}: the tokens of its {name} are no list")
        if tokens is None and ids is None:
            raise Unreadable(f"{path}: its {name} has no tokens", why="an example of a run is its tokens")
        ids = None if ids is None else token_ids(ids, f"{path}, {name}")
        words = tuple(f"#{each}" for each in ids or ()) if tokens is None else tuple(map(str, tokens))
        if ids is not None and len(ids) != len(words):
            raise Unreadable(f"{path}: its {name} has {len(words)} tokens and {len(ids)} token ids")
        return cls(str(text), words, ids)


class PtFile:
    """One file: its texts, and its tensors as whole arrays of an example, NaN where it holds nothing.

    Attributes:
        ours: What an export of ours says in it, nothing in others.
        types: Those of the row of the token table that it tells, if it does.
        prompt, response: The words.
        further: Arrays that it holds as the run had them, by key.
        is_mean: Whether the patterns that it shows are means over heads.
    """

    def __init__(self, path: Path, data: Any) -> None:
        self.path = path
        if not isinstance(data, dict) or not {"prompt", "response"} <= data.keys():
            raise Unreadable(
                f"{path} is none of the Gemma capture's files", why="these hold 'prompt' and 'response', a dict of each"
            )
        self._prompt, self._response = data["prompt"], data["response"]
        if not isinstance(self._prompt, dict) or not isinstance(self._response, dict):
            raise Unreadable(f"{path}: 'prompt' and 'response' are not dicts")
        self.ours: Mapping[str, Any] = self._told(data.get("traceformer"))
        self.types = read_types(self.ours["types"], str(path)) if "types" in self.ours else None
        self.prompt, self.response = (_Words.of(data, name, path) for name in ("prompt", "response"))
        self.tokens = self.prompt.tokens + self.response.tokens
        self.n_prompt, self.n = len(self.prompt.tokens), len(self.tokens)
        if not self.n_prompt:
            raise Unreadable(f"{path}: its prompt has no tokens")
        self._is_of_the_code = "prompt_text" in data
        self.is_mean = False
        self._rows: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}
        self._squares: dict[int, tuple[np.ndarray, Sequence[np.ndarray]]] = {}
        if "activations" in self._prompt:
            self._take_residual()
        else:
            self._take_internals()
        self._is_behind = self._repeats_the_prompt()
        self.further = self._further()
        self.is_mean = self.is_mean and key_of("attn_pattern", self.stack) not in self.further

    @property
    def ids(self) -> tuple[int, ...] | None:
        """The token ids, None where the file does not tell them."""
        if self.prompt.ids is None or self.response.ids is None:
            return None
        return self.prompt.ids + self.response.ids

    @property
    def stack(self) -> Stack:
        return "enc" if self.ours.get("run", {}).get("arch") == "enc" else "dec"

    @property
    def layer(self) -> int:
        """The layer of a file of one."""
        told, named = self.ours.get("layer"), re.search(r"_L(\d{1,6})$", self.path.stem)
        if told is None and named is None:
            raise Unreadable(f"which layer is {self.path} of?", why="its name does not end in _L and a number")
        return int(told) if told is not None else int(named[1]) if named else 0

    def dtypes(self) -> Iterator[str]:
        if "dtype" in self.ours:
            yield str(self.ours["dtype"])
            return
        for rows in self._rows.values():
            yield str(rows[0].dtype)
        for prompt, _ in self._squares.values():
            yield str(prompt.dtype)

    def arrays(self) -> Iterator[ArraySpec]:
        """Yields what is held of each layer, one spec for each."""
        for key, values in self.further.items():
            yield self._spec_of_further(key, values)
        for (name, layer), (prompt, _) in self._rows.items():
            key = key_of(self._site(name), self.stack)
            if key in self.further:
                continue
            width = self._head_width(layer) if name in ("q_proj", "k_proj", "v_proj") else 0
            if width and prompt.shape[-1] % width:
                raise Unreadable(f"{self.path}: {prompt.shape[-1]} numbers of {name} are no heads of {width}")
            heads = tuple(range(prompt.shape[-1] // width)) if width else ()
            yield ArraySpec(key, (layer,), heads, width or prompt.shape[-1])
        for layer, (prompt, _) in self._squares.items():
            key = key_of("attn_pattern", self.stack)
            if key not in self.further:
                yield ArraySpec(key, (layer,), tuple(range(len(prompt))))

    def rows(self, site: str, layer: int) -> Float[np.ndarray, "token d"] | None:
        """Returns a site's rows of all tokens, by the run's name for it."""
        held = {(self._site(name), at): rows for (name, at), rows in self._rows.items()}
        if (site, layer) not in held:
            return None
        prompt, response = held[site, layer]
        whole = np.full((self.n, prompt.shape[-1]), np.nan, np.float32)
        start = self.n_prompt - self._is_behind
        whole[start : start + len(response)] = response
        whole[: self.n_prompt] = prompt
        return whole

    def pattern(self, layer: int) -> Float[np.ndarray, "head query key"] | None:
        """Returns a layer's whole pattern: the prompt's square, and the last row of each later one."""
        if layer not in self._squares:
            return None
        prompt, response = self._squares[layer]
        whole = np.full((len(prompt), self.n, self.n), np.nan, np.float32)
        whole[:, : self.n_prompt, : self.n_prompt] = prompt
        whole[:, : self.n_prompt, self.n_prompt :] = 0
        for i, square in enumerate(response):
            size = self.n_prompt + i
            row = square[:, -1] if square.ndim == 3 else square
            if row.shape != (len(prompt), size):
                raise Unreadable(
                    f"{self.path}: pattern {i} of the response has shape {list(square.shape)}",
                    why=f"{size} tokens come before token {i}",
                )
            whole[:, size - 1, :size] = row
            whole[:, size - 1, size:] = 0
        return whole

    # What the file holds

    def _told(self, ours: Any) -> Mapping[str, Any]:
        if ours is None:
            return {}
        if not isinstance(ours, dict) or ours.get("format") != PT_FORMAT:
            raise Unreadable(f"{self.path}: its member 'traceformer' is not what an export writes")
        for name, kind in (("row", dict), ("run", dict), ("further", dict), ("arrays", list)):
            if not isinstance(ours.get(name), kind):
                raise Unreadable(f"{self.path}: traceformer.{name} is not what an export writes")
        check_plain({name: value for name, value in ours.items() if name != "further"}, f"{self.path}, traceformer")
        return ours

    def _take_residual(self) -> None:
        self.is_mean = True
        prompt, response = (self._by_layer(section, "activations") for section in (self._prompt, self._response))
        self._is_of_the_code |= any(isinstance(layer, int) for layer in self._prompt["activations"])
        for layer, own in prompt.items():
            self._take_rows(RESIDUAL, own, response.get(layer, {}), layer)
        steps = self._response.get("attention")
        if isinstance(steps, list):  # as the code wrote it: for each token, a dict of layers
            self._is_of_the_code = True
            by_step = [self._by_layer({"attention": step}, "attention") for step in steps]
            squares = {layer: [step[layer] for step in by_step if layer in step] for layer in prompt}
        else:
            squares = self._by_layer(self._response, "attention")
        for layer, square in self._by_layer(self._prompt, "attention").items():
            self._take_squares(layer, square, squares.get(layer, []))

    def _by_layer(self, section: Mapping[str, Any], name: str) -> dict[int, Any]:
        return {_layer_of(layer, self.path): value for layer, value in self._dict(section, name).items()}

    def _take_internals(self) -> None:
        layer = self.layer
        for part, names in INTERNALS.items():
            if part not in self._prompt:
                continue
            prompt, response = self._dict(self._prompt, part), self._dict(self._response, part)
            rows = {name: value for name, value in prompt.items() if name != "attn_weights"}
            self._take_rows(names, rows, response, layer)
            if "attn_weights" in prompt:
                self._take_squares(layer, prompt["attn_weights"], response.get("attn_weights", []))

    def _dict(self, section: Mapping[str, Any], name: str) -> Mapping[Any, Any]:
        found = section.get(name)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise Unreadable(f"{self.path}: its {name} are no dict, but {type(found).__name__}")
        return found

    def _take_rows(self, names: Mapping[str, str], prompt: Any, response: Any, layer: int) -> None:
        if not isinstance(prompt, dict) or not isinstance(response, dict):
            raise Unreadable(f"{self.path}: layer {layer} is no dict of tensors")
        for name, value in prompt.items():
            if name not in names:
                raise Unreadable(f"{self.path} has activations {name!r}", hint=f"known: {', '.join(names)}")
            rows = self._two(value, name)
            later = self._two(response.get(name, []), name)
            later = later if len(later) else rows[:0]
            if len(rows) != self.n_prompt or len(later) > self.n - self.n_prompt or later.shape[1:] != rows.shape[1:]:
                raise Unreadable(
                    f"{self.path} has {len(rows)} + {len(later)} rows of {name}",
                    why=f"prompt and response have {self.n_prompt} + {self.n - self.n_prompt} tokens",
                )
            self._rows[name, layer] = rows, later

    def _two(self, value: Any, name: str) -> Float[np.ndarray, "token d"]:
        """Rows from a list of them or stacked, with or without an extra dimension."""
        if isinstance(value, list):
            if not value:
                return np.empty((0, 0), np.float32)
            if not all(isinstance(each, np.ndarray) and each.size == value[0].size for each in value):
                raise Unreadable(f"{self.path}: {name} is no list of rows of one width")
            value = np.stack([each.reshape(-1) for each in value])
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.floating):
            raise Unreadable(f"{self.path}: {name} is no tensor of floating-point numbers")
        if value.ndim == 3 and value.shape[1] == 1:
            value = value[:, 0]
        if value.ndim != 2:
            raise Unreadable(f"{self.path}: {name} has shape {list(value.shape)}", why="rows of numbers are expected")
        if not np.isfinite(value).all() and UNKNOWN not in self.ours.get("run", {}):
            raise Unreadable(f"{self.path}: {name} has values that are NaN or infinite", why="a run holds none")
        return value

    def _take_squares(self, layer: int, prompt: Any, response: Any) -> None:
        if not isinstance(response, list) or not all(isinstance(each, np.ndarray) for each in (prompt, *response)):
            raise Unreadable(f"{self.path}: the patterns of layer {layer} are no tensor and a list of them")
        if self.is_mean:  # one head: the mean
            prompt, response = prompt[None], [each[None] for each in response]
        if prompt.ndim != 3 or prompt.shape[1:] != (self.n_prompt, self.n_prompt):
            raise Unreadable(
                f"{self.path}: the prompt's pattern in layer {layer} has shape {list(prompt.shape)}",
                why=f"the prompt has {self.n_prompt} tokens",
            )
        if len(response) > self.n - self.n_prompt:
            raise Unreadable(f"{self.path} has {len(response)} patterns of {self.n - self.n_prompt} tokens")
        if not all(np.isfinite(each).all() for each in (prompt, *response)) and UNKNOWN not in self.ours.get("run", {}):
            raise Unreadable(f"{self.path}: the patterns of layer {layer} are NaN or infinite", why="a run holds none")
        self._squares[layer] = prompt, response

    def _further(self) -> dict[ArrayKey, np.ndarray]:
        found: dict[ArrayKey, np.ndarray] = {}
        for name, values in self.ours.get("further", {}).items():
            if not isinstance(values, np.ndarray):
                raise Unreadable(f"{self.path}: {name} is no tensor")
            found[self._key(str(name))] = values
        return found

    def _key(self, name: str) -> ArrayKey:
        try:
            return ArrayKey.parse(name)
        except SelectionError as error:
            raise Unreadable(f"{self.path}: {error}") from error

    def _spec_of_further(self, key: ArrayKey, values: np.ndarray) -> ArraySpec:
        told = {each.get("key"): each for each in self.ours["arrays"] if isinstance(each, dict)}
        try:
            spec = ArraySpec.from_json(told[str(key)])
        except (KeyError, TypeError, SelectionError) as error:
            raise Unreadable(f"{self.path}: traceformer.arrays does not say what {key} is") from error
        of_one = "layer" in self.ours and spec.site.axes[0] == "layer"
        return ArraySpec(key, (self.layer,) if of_one else spec.layers, spec.heads, spec.width)

    def _head_width(self, layer: int) -> int:
        """The width of a head: patterns show how many there are, in others' files."""
        told = [each for each in self.ours.get("arrays", ()) if str(each.get("key")).endswith(".q_proj")]
        if told:
            return int(told[0]["width"])
        if layer not in self._squares or ("q_proj", layer) not in self._rows:
            raise Unreadable(f"{self.path} does not show how many heads it has", why="it lacks q_proj or attn_weights")
        return max(1, self._rows["q_proj", layer][0].shape[-1] // len(self._squares[layer][0]))

    def _repeats_the_prompt(self) -> bool:
        """Whether the response's rows are one position behind: the first of each is the prompt's last."""
        if self.ours or not self.n_prompt:
            return False
        pairs = [(prompt[-1], later[0]) for prompt, later in self._rows.values() if len(later)]
        scale = [_CLOSE * float(np.abs(last).max()) for last, _ in pairs]
        return bool(pairs) and all(
            np.allclose(last, own, rtol=0, atol=atol) for (last, own), atol in zip(pairs, scale, strict=True)
        )

    def _site(self, name: str) -> str:
        if name == "after_attn" and (self._is_of_the_code or self._is_behind):
            return "mlp_norm"
        return _SITES[name]


def _layer_of(name: Any, path: Path) -> int:
    found = re.fullmatch(r"(?:layer_)?(\d{1,6})", str(name))
    if not found:
        raise Unreadable(f"{path}: which layer is {name!r}?", hint="0, '0' or 'layer_0'")
    return int(found[1])
