"""What a caller may ask for: every refusal names the field, its value and the remedy."""

import pytest

from serve.engine.request import EngineRequest, SamplingParams

REFUSED = [
    ("max_new_tokens", 0, "at least 1"),
    ("max_new_tokens", 2.5, "whole number"),
    ("max_new_tokens", True, "whole number"),
    ("temperature", -0.1, "from 0"),
    ("temperature", float("nan"), "from 0"),
    ("temperature", "hot", "from 0"),
    ("top_p", 0, "above 0"),
    ("top_p", 1.1, "at most 1"),
    ("top_k", -1, "0 for off"),
    ("min_p", 1.5, "from 0"),
    ("typical_p", 0.0, "above 0"),
    ("repetition_penalty", 0, "above 0"),
    ("repetition_penalty", float("inf"), "1 for off"),
    ("frequency_penalty", 101, "0 for off"),
    ("presence_penalty", None, "0 for off"),
    ("no_repeat_ngram_size", -2, "0 for off"),
    ("logit_bias", [1, 2], "mapping"),
    ("logit_bias", {"a": 1.0}, "token ids"),
    ("logit_bias", {3: float("inf")}, "finite"),
    ("seed", -1, "whole number"),
    ("seed", 2**63, "whole number"),
    ("num_logprobs", 51, "0..50"),
    ("ignore_eos", 1, "true or false"),
    ("stop_token_ids", "abc", "token ids"),
    ("stop_token_ids", [-1], "token ids"),
]


@pytest.mark.parametrize(("name", "value", "remedy"), REFUSED)
def test_a_bad_value_is_refused_by_name_with_a_remedy(name: str, value: object, remedy: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is .*{remedy}"):
        SamplingParams(**{name: value})


def test_the_edges_of_each_range_are_accepted() -> None:
    SamplingParams(temperature=0, top_p=1, top_k=0, min_p=1, typical_p=1, seed=0, num_logprobs=0, logit_bias={})
    SamplingParams(seed=2**63 - 1, frequency_penalty=-100, num_logprobs=50, stop_token_ids=[0])


def test_a_request_needs_a_prompt_and_a_priority_within_bounds() -> None:
    with pytest.raises(ValueError, match=r"prompt_ids is \[\]"):
        EngineRequest(0, [])
    with pytest.raises(ValueError, match="priority is 101"):
        EngineRequest(0, [1], priority=101)
