"""Where vectors are, and that of all runs one embeds a text."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ledger import Ledger
from pipeline.ledger.vectors import Claim
from pipeline_tests.ledger.clock import Clock

ONE, TWO, THREE = (bytes([n]) * 16 for n in (1, 2, 3))


def everyone_lives(_run_id: str) -> bool:
    return True


def claim(
    ledger: Ledger,
    run_id: str,
    wanted: Mapping[str, list[bytes]],
    *,
    model: str = "m",
    is_live: Callable[[str], bool] = everyone_lives,
) -> Claim:
    return ledger.vectors.claim(model, wanted, run_id, seconds=60, is_live=is_live)


def test_a_vector_is_found_in_any_partition_that_still_holds_it(ledger: Ledger) -> None:
    one, two = b"1" * 16, b"2" * 16
    ledger.vectors.replace("m", {"a": [one, one], "b": [one, two]})
    assert ledger.vectors.locate("m", [one, two, b"3" * 16]) == {one: "a", two: "b"}
    ledger.vectors.replace("m", {"b": []})
    assert ledger.vectors.locate("m", [one, two]) == {one: "a"}
    assert ledger.vectors.locate("other model", [one]) == {}


def test_vectors_of_another_model_survive_beside_the_new_ones(ledger: Ledger) -> None:
    ledger.vectors.replace("old", {"a": [b"1" * 16]})
    ledger.vectors.replace("new", {"a": [b"2" * 16]})
    assert ledger.vectors.locate("new", [b"2" * 16]) == {b"2" * 16: "a"}
    assert ledger.vectors.locate("old", [b"1" * 16]) == {}


def test_what_one_run_embeds_another_waits_for_and_then_finds(ledger: Ledger) -> None:
    assert claim(ledger, "run-1", {"a": [ONE, TWO]}) == Claim({}, set())
    assert claim(ledger, "run-2", {"b": [TWO], "c": [THREE]}) == Claim({}, {"b"})
    ledger.vectors.replace("m", {"a": [ONE, TWO]}, "run-1")
    assert claim(ledger, "run-2", {"b": [TWO], "c": [THREE]}) == Claim({TWO: "a"}, set())


def test_a_file_is_claimed_whole_or_not_at_all_so_that_nobody_waits_in_a_circle(ledger: Ledger) -> None:
    claim(ledger, "run-1", {"a": [ONE]})
    assert claim(ledger, "run-2", {"b": [ONE, TWO]}).waiting == {"b"}
    assert claim(ledger, "run-1", {"c": [TWO]}).waiting == set()


def test_a_run_claims_group_after_group_and_holds_the_last_one(ledger: Ledger) -> None:
    claim(ledger, "run-1", {"a": [ONE]})
    claim(ledger, "run-1", {"b": [TWO]})
    assert claim(ledger, "run-2", {"c": [ONE], "d": [TWO]}).waiting == {"d"}


def test_another_model_or_export_embeds_the_same_text_for_itself(ledger: Ledger, url: str) -> None:
    claim(ledger, "run-1", {"a": [ONE]})
    assert claim(ledger, "run-2", {"b": [ONE]}, model="other").waiting == set()
    other = Ledger(url, "other")
    assert claim(other, "run-3", {"c": [ONE]}).waiting == set()
    other.close()


def test_what_a_run_gives_back_or_a_dead_one_held_is_free(ledger: Ledger) -> None:
    claim(ledger, "run-1", {"a": [ONE]})
    claim(ledger, "run-2", {"b": [TWO]})
    ledger.vectors.release("run-2")
    assert claim(ledger, "run-3", {"c": [ONE, TWO]}).waiting == {"c"}
    assert claim(ledger, "run-3", {"c": [ONE, TWO]}, is_live=lambda run_id: run_id != "run-1").waiting == set()


def test_of_runs_that_have_ended_no_digest_is_kept_and_those_of_a_living_one_stay(ledger: Ledger) -> None:
    claim(ledger, "over", {"a": [ONE]})
    claim(ledger, "alive", {"b": [TWO]})
    ledger.vectors.drop_ended(lambda run_id: run_id == "alive")
    assert claim(ledger, "next", {"c": [ONE], "d": [TWO]}).waiting == {"d"}


def test_a_claim_nobody_renews_runs_out(ledger: Ledger, clock: Clock) -> None:
    claim(ledger, "run-1", {"a": [ONE]})
    clock.now += 50
    ledger.renew("run-1", seconds=60)
    clock.now += 50
    assert claim(ledger, "run-2", {"b": [ONE]}).waiting == {"b"}
    clock.now += 11
    assert claim(ledger, "run-2", {"b": [ONE]}).waiting == set()


def test_of_runs_that_claim_at_the_same_moment_one_gets_each_text(ledger: Ledger) -> None:
    texts = [bytes([n]) * 16 for n in range(40)]
    together = threading.Barrier(6)

    def run(number: int) -> set[bytes]:
        files = {f"{number}-{n}": random.Random(100 * number + n).sample(texts, 3) for n in range(20)}
        together.wait()
        got = claim(ledger, f"run-{number}", files)
        return {digest for file_id, of_file in files.items() if file_id not in got.waiting for digest in of_file}

    with ThreadPoolExecutor(6) as pool:
        taken = Counter(digest for of_run in pool.map(run, range(6)) for digest in of_run)
    assert set(taken.values()) == {1}


@dataclass
class Run:
    """A run as the ledger sees it: it claims a group, embeds it, notes the vectors, and looks again for what it left."""

    ledger: Ledger
    name: str
    pending: dict[str, set[bytes]]
    group: dict[str, set[bytes]] = field(default_factory=dict)
    embedding: set[bytes] = field(default_factory=set)

    @property
    def over(self) -> bool:
        return not self.pending and not self.group

    def step(self, is_live: Callable[[str], bool], size: int) -> set[bytes]:
        """Half a group; answers the texts whose embedding has just begun."""
        if self.group:
            self.ledger.vectors.replace("m", self.group, self.name)
            self.group, self.embedding = {}, set()
            return set()
        wanted = dict(list(self.pending.items())[:size])
        got = self.ledger.vectors.claim("m", wanted, self.name, seconds=60, is_live=is_live)
        self.group = {file_id: digests for file_id, digests in wanted.items() if file_id not in got.waiting}
        later = {file_id: digests for file_id, digests in self.pending.items() if file_id not in wanted}
        self.pending = later | {file_id: digests for file_id, digests in wanted.items() if file_id in got.waiting}
        self.embedding = set().union(*self.group.values()) - got.located.keys()
        return self.embedding


file_contents = st.sets(st.integers(0, 6), max_size=4)
a_run_s_files = st.lists(file_contents, min_size=1, max_size=5)


@settings(max_examples=100, deadline=None)
@given(
    runs=st.lists(a_run_s_files, min_size=2, max_size=4),
    turns=st.lists(st.integers(0, 3), max_size=30),
    size=st.integers(1, 4),
    deaths=st.dictionaries(st.integers(0, 29), st.integers(0, 3), max_size=2),
)
def test_in_any_order_of_runs_and_deaths_all_end_and_a_text_is_embedded_once(
    runs: list[list[set[int]]], turns: list[int], size: int, deaths: dict[int, int]
) -> None:
    ledger = Ledger("sqlite://", "default")
    alive = [
        Run(ledger, f"run-{r}", {f"{r}-{n}": {bytes([text]) * 16 for text in texts} for n, texts in enumerate(files)})
        for r, files in enumerate(runs)
    ]
    embedded: Counter[bytes] = Counter()
    lost: Counter[bytes] = Counter()
    wait = sum(map(len, runs)) * 4
    fair = [number % len(runs) for number in range(wait * len(runs))]
    for moment, turn in enumerate([*turns, *fair]):
        if moment in deaths and len(alive) > 1:
            lost.update(alive.pop(deaths[moment] % len(alive)).embedding)
        if all(run.over for run in alive):
            break
        embedded.update(alive[turn % len(alive)].step(lambda name: name in {run.name for run in alive}, size))
    assert all(run.over for run in alive)
    assert all(count <= 1 + lost[digest] for digest, count in embedded.items())
    ledger.close()
