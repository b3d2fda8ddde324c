"""Joining a ranking by vectors and one by words."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sinks.fusion import HYBRID_DEPTH, relative_score_fusion

NAN = float("nan")

eighths = st.integers(0, 400).map(lambda n: n / 8)
cosines = st.floats(-1, 1) | st.just(NAN)


def _rankings(scores: st.SearchStrategy[float]) -> st.SearchStrategy[list[tuple[str, float]]]:
    return st.dictionaries(st.sampled_from("abcdefgh"), scores).map(lambda found: list(found.items()))


def _full(names_and_scores: dict[str, float], lowest: float) -> list[tuple[str, float]]:
    """A ranking as long as a search answers, whose last score is ``lowest``."""
    rest = HYBRID_DEPTH - len(names_and_scores)
    return [*names_and_scores.items(), *((f"filler {n}", lowest) for n in range(rest))]


def test_an_exact_match_that_vectors_missed_comes_before_what_both_searches_find_a_little() -> None:
    """Ranks alone would have it after ``poor``, which is low in both."""
    by_vector = _full({"near": 0.8, "poor": 0.32}, 0.3)
    by_text = _full({"exact": 21.0, "poor": 2.2}, 2.0)
    found = relative_score_fusion(by_vector, by_text, 3)
    assert [name for name, _ in found] == ["exact", "near", "poor"]


def test_a_score_is_the_mean_of_both_relative_scores() -> None:
    by_vector = [("a", 0.9), ("b", 0.7), ("c", 0.5)]
    by_text = _full({"b": 10.0, "a": 6.0}, 2.0)
    found = dict(relative_score_fusion(by_vector, by_text, 2))
    assert found == pytest.approx({"a": (1 + 0.5) / 2, "b": (0.5 + 1) / 2})


def test_of_few_matches_the_last_counts_by_its_score_and_not_as_if_it_had_no_word() -> None:
    by_vector = _full({"near": 0.9, "other": 0.89}, 0.4)
    found = relative_score_fusion(by_vector, [("first", 8.0), ("second", 7.6)], 4)
    assert found[0] == ("first", 0.5)
    assert [name for name, _ in found] == ["first", "near", "other", "second"]
    assert found[3][1] == pytest.approx(0.475)


@pytest.mark.parametrize("score", [-1.0, 0.0, 1e-9, 17.0])
def test_a_single_hit_and_hits_of_one_score_are_the_best_of_their_ranking(score: float) -> None:
    assert relative_score_fusion([("a", score)], [], 5) == [("a", 0.5)]
    assert relative_score_fusion([("b", score), ("a", score)], [("c", abs(score))], 5) == [("c", 0.5), ("a", 0.5), ("b", 0.5)]


def test_two_empty_rankings_are_an_empty_answer() -> None:
    assert relative_score_fusion([], [], 5) == []


def test_a_tie_goes_to_the_better_by_words_and_then_to_the_smaller_id() -> None:
    by_vector = [("a", 1.0), ("b", 1.0), ("z", 0.0)]
    by_text = _full({"d": 5.0, "c": 5.0}, 1.0)
    assert [name for name, _ in relative_score_fusion(by_vector, by_text, 4)] == ["c", "d", "a", "b"]


def test_a_score_that_is_no_number_says_nothing_and_its_record_is_still_found() -> None:
    """As cosines of a vector without a direction are."""
    assert relative_score_fusion([("a", NAN), ("b", NAN)], [("b", 2.0)], 5) == [("b", 0.5), ("a", 0.0)]
    assert relative_score_fusion([("a", 0.9), ("b", NAN), ("c", 0.1)], [], 5) == [("a", 0.5), ("b", 0.0), ("c", 0.0)]


@given(_rankings(cosines), _rankings(eighths), st.integers(1, 10))
def test_the_best_k_come_once_each_in_order_with_scores_from_0_to_1(
    by_vector: list[tuple[str, float]], by_text: list[tuple[str, float]], k: int
) -> None:
    found = relative_score_fusion(by_vector, by_text, k)
    names, scores = [name for name, _ in found], [score for _, score in found]
    assert len(set(names)) == len(names) == min(k, len({*dict(by_vector), *dict(by_text)}))
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert all(score <= 0.5 for name, score in found if name not in dict(by_vector) or name not in dict(by_text))
    assert found == relative_score_fusion(by_vector, by_text, 10)[:k]


@given(_rankings(cosines), _rankings(eighths), st.randoms(use_true_random=False))
def test_the_answer_is_the_same_in_whatever_order_equals_come(
    by_vector: list[tuple[str, float]], by_text: list[tuple[str, float]], random: Random
) -> None:
    found = relative_score_fusion(by_vector, by_text, 10)
    random.shuffle(by_vector)
    random.shuffle(by_text)
    assert relative_score_fusion(by_vector, by_text, 10) == found


@given(_rankings(cosines), _rankings(eighths), st.sampled_from([2.0**-20, 2.0**20]))
def test_the_answer_does_not_depend_on_the_scale_of_a_stores_scores(
    by_vector: list[tuple[str, float]], by_text: list[tuple[str, float]], factor: float
) -> None:
    scaled = [(name, score * factor) for name, score in by_text]
    assert [name for name, _ in relative_score_fusion(by_vector, scaled, 10)] == [
        name for name, _ in relative_score_fusion(by_vector, by_text, 10)
    ]


@given(_rankings(cosines), _rankings(eighths))
def test_what_is_no_worse_in_both_rankings_has_no_smaller_score(
    by_vector: list[tuple[str, float]], by_text: list[tuple[str, float]]
) -> None:
    vector, text = dict(by_vector), dict(by_text)
    found = dict(relative_score_fusion(by_vector, by_text, 10))
    for better in vector.keys() & text.keys():
        for other in vector.keys() & text.keys():
            if vector[better] >= vector[other] and text[better] >= text[other]:
                assert found[better] >= found[other]
