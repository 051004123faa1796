"""lm-evaluation-harness against a running Phiserve: greedy generation through POST /generate.

    python examples/lm_eval_server.py http://127.0.0.1:8000 --tasks last_word --include-path examples/lm_eval

Needs lm-eval, which brings requests. Tasks that ask for log-likelihoods run on the checkpoint itself, by
`lm_eval --model hf`.
"""

import argparse
import json
import sys
from typing import Any

import lm_eval
import requests
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager


class PhiserveLM(LM):
    """A served model, for tasks whose output is text. One request at a time."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url.rstrip("/") + "/generate"

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy, as the harness asks unless a task says do_sample."""
        return [self._generate(*instance.args) for instance in requests]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until", [])
        sampled = options.get("do_sample", False)
        body = {
            "prompt": context,
            "max_new_tokens": options.get("max_gen_toks", 64),
            "temperature": float(options.get("temperature", 1.0)) if sampled else 0.0,
            "stop": [until] if isinstance(until, str) else list(until),
        }
        answer = requests.post(self._url, json=body, timeout=300)
        if not answer.ok:
            raise ValueError(f"{self._url} answered {answer.status_code}: {answer.text}")
        text: str = answer.json()["choices"][0]["text"]
        return text

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        raise ValueError("POST /generate gives no log-likelihood of a given text: use `lm_eval --model hf`")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise ValueError("POST /generate gives no log-likelihood of a given text: use `lm_eval --model hf`")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run lm-evaluation-harness tasks on a running server.")
    parser.add_argument("url", help="of the server, such as http://127.0.0.1:8000")
    parser.add_argument("--tasks", nargs="+", required=True, help="names of tasks whose output_type is generate_until")
    parser.add_argument("--include-path", help="folder with more task files")
    parser.add_argument("--limit", type=int, help="only the first examples")
    options = parser.parse_args()
    results = lm_eval.simple_evaluate(
        model=PhiserveLM(options.url),
        tasks=options.tasks,
        limit=options.limit,
        task_manager=TaskManager(include_path=options.include_path),
    )
    print(json.dumps(results["results"], indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
