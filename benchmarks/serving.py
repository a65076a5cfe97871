"""Tokens per second of a running server, with one and with many requests at once.

malt serve tiny --port 8000 --slots 16
python benchmarks/serving.py --url http://127.0.0.1:8000/v1 --requests 1 50
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor

from openai import OpenAI


def ask(client: OpenAI, model: str, text: str, seed: int, new: int) -> int:
    """The tokens of one reply."""
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": text}],
        seed=seed,
        max_tokens=new,
    )
    assert reply.usage is not None
    return reply.usage.completion_tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--models", nargs="+", default=["malt"], help="asked in turn")
    parser.add_argument("--question", default="What is 12 * 7?")
    parser.add_argument("--requests", nargs="+", type=int, default=[1, 50], help="at once")
    parser.add_argument("--new", type=int, default=48, help="limit of tokens")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options = parser.parse_args()
    client = OpenAI(base_url=options.url, api_key="none")
    for count in options.requests:
        with ThreadPoolExecutor(count) as pool:
            tokens = finished = 0
            # Once without measuring: the first requests of a size compile programs.
            for began in (None, time.monotonic()):
                while True:
                    models = options.models * count
                    jobs = [
                        pool.submit(
                            *(ask, client, models[n], options.question),
                            *(finished + n, options.new),
                        )
                        for n in range(count)
                    ]
                    done = sum(job.result() for job in jobs)
                    if began is None:
                        break
                    tokens, finished = tokens + done, finished + count
                    seconds = time.monotonic() - began
                    if seconds > options.seconds:
                        break
        print(
            f"{count} at once: {tokens / seconds:,.0f} tokens/s,"
            f" {finished / seconds:.1f} requests/s"
        )


if __name__ == "__main__":
    main()
