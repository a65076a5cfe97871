"""Asks an exported pipeline one question through any server with OpenAI's chat API.

    python examples/three_calls.py DIR "QUESTION" --url http://localhost:8000/v1

DIR is the directory that `malt export` wrote; docs/export.md starts the servers.
"""

import argparse
import json
import re
from pathlib import Path

from openai import OpenAI

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("directory", type=Path)
parser.add_argument("question")
parser.add_argument("--url", default="http://localhost:8000/v1")
parser.add_argument("--model", default="{role}", help="a role's model on the server (%(default)s)")
parser.add_argument("--base", default="base", help="the model of untrained roles (%(default)s)")
parser.add_argument(
    "--llama-cpp", action="store_true", help="adapters by number, as --lora's order"
)
options = parser.parse_args()

pipeline = json.loads((options.directory / "pipeline.json").read_text(encoding="utf-8"))
sampling, client = pipeline["sampling"], OpenAI(base_url=options.url, api_key="none")
said = {"question": options.question}
trained = [role["name"] for role in pipeline["roles"] if role["directory"]]
# Not in OpenAI's API, but in that of vLLM and SGLang; other servers ignore them.
more = {"stop_token_ids": pipeline["stop_ids"]}
if pipeline["chat_template_kwargs"]:
    more["chat_template_kwargs"] = pipeline["chat_template_kwargs"]
if sampling["top_k"]:
    more["top_k"] = sampling["top_k"]
for role in pipeline["roles"]:
    if options.llama_cpp:
        used = [trained.index(role["name"])] if role["directory"] else []
        more["lora"] = [{"id": number, "scale": 1.0} for number in used]
    user = re.sub(r"\{([a-z][a-z0-9_]*)\}", lambda slot: said[slot[1]], role["user"])
    messages = [{"role": "system", "content": role["system"]}] if role["system"] else []
    for example in role["examples"]:
        messages += [{"role": turn, "content": example[turn]} for turn in ("user", "assistant")]
    reply = client.chat.completions.create(
        model=options.model.format(role=role["name"]) if role["directory"] else options.base,
        messages=[*messages, {"role": "user", "content": user}],
        temperature=sampling["temperature"],
        top_p=sampling["top_p"],
        max_tokens=sampling["max_tokens"],
        extra_body=more,
    )
    said[role["name"]] = reply.choices[0].message.content or ""
    print(f"--- {role['name']} ---\n{said[role['name']]}\n")
