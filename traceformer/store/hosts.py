"""What computed a shard, as far as it changes how fast that went, and at most the last bits of its numbers.

A run that was begun on one machine goes on on another: how many threads and cores there are, and which instructions
the processor has, is stated in each shard's record and is not part of what must agree. What changes more than last
bits does have to agree: weights, texts, batches, versions, the kind of device.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["UNKNOWN", "Computed", "Host", "computed_by", "deciding"]

_SPEED_ONLY = ("threads",)  # which runs that were begun by earlier versions state beside what decides their bytes


@dataclass(frozen=True, slots=True)
class Host:
    """The facts of the process that computed a shard; None where they are not known.

    Attributes:
        threads: How many share one operation: sums that are split otherwise differ in their last bits.
        cores: How many processors the machine has.
        instructions: The widest that torch uses there, such as AVX2 or AVX512; their sums are split otherwise, too.
    """

    threads: int | None = None
    cores: int | None = None
    instructions: str | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Host":
        """Returns what `to_json` gave; of an older record, or one of another version, what is known."""
        kinds = {"threads": int, "cores": int, "instructions": str}
        return cls(**{name: data[name] for name, kind in kinds.items() if type(data.get(name)) is kind})

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        threads = None if self.threads is None else f"{self.threads} thread{'s' * (self.threads != 1)}"
        cores = None if self.cores is None else f"on {self.cores} core{'s' * (self.cores != 1)}"
        return " ".join(filter(None, (threads, cores, self.instructions))) or "an unknown host"

    def changed_from(self, before: "Host") -> tuple[str, ...]:
        """Returns the names of the facts that both know, and that are not the same of both."""
        both = ((each.name, getattr(self, each.name), getattr(before, each.name)) for each in fields(self))
        return tuple(name for name, own, other in both if None not in (own, other) and own != other)


UNKNOWN = Host()
"""Of shards whose record does not say what computed them."""


@dataclass(frozen=True, slots=True)
class Computed:
    """The shards of a run that one kind of host computed, as ranges: `0-11, 14`."""

    host: Host
    shards: str

    def __str__(self) -> str:
        return f"{self.host}: shard{'' if self.shards.isdecimal() else 's'} {self.shards}"

    def to_json(self) -> dict[str, Any]:
        return {**self.host.to_json(), "shards": self.shards}


def computed_by(hosts: Mapping[int, Host]) -> tuple[Computed, ...]:
    """Returns which shards were computed by which kind of host, as far as their records say, by their first shard."""
    shards: dict[Host, list[int]] = {}
    for shard in sorted(hosts):
        if hosts[shard] != UNKNOWN:
            shards.setdefault(hosts[shard], []).append(shard)
    return tuple(Computed(host, ", ".join(_ranges(own))) for host, own in shards.items())


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    first = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield str(numbers[first]) if at == first + 1 else f"{numbers[first]}-{numbers[at - 1]}"
            first = at


def deciding(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what must agree for a run to be gone on with: a configuration without what changes only its speed."""
    return {name: value for name, value in configuration.items() if name not in _SPEED_ONLY}
