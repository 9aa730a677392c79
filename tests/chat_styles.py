"""Conversations in every format, and chat templates in the styles that models have, without marks of what the assistant says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOOL = {
    "name": "add",
    "description": "Adds two numbers",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
}
CALL = {"name": "add", "arguments": {"a": 2, "b": 3}}

ROWS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "Name the sum.", "input": "2 and 3", "output": "It is 5."},
    "sharegpt": {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."},
            {"from": "human", "value": "Say Good day. again"}, {"from": "gpt", "value": "Good day. Again."},
        ],
    },
    "messages": {
        "messages": [
            {"role": "user", "content": "One?"}, {"role": "assistant", "content": " Uno. "},
            {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Dos.\nYes, dos."},
        ]
    },
    "prompt_completion": {"prompt": "Two?", "completion": "Dos."},
    "tools": {
        "conversations": [
            {"from": "human", "value": "Add 2 and 3."}, {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": '{"sum": 5}'}, {"from": "gpt", "value": "The sum is 5."},
        ],
        "tools": json.dumps([TOOL]),
    },
}  # fmt: skip

# Llama 2: contents are stripped, a space before each answer, the end token behind it; the begin token before each question.
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ (bos_token or '') + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
# Qwen 3: answers behind the last question have an empty thought, earlier ones lose theirs; tools in a system message.
THOUGHTS = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for t in tools %}{{ t | tojson + '\n' }}{% endfor %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set r = m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '' %}"
    "{% if loop.index0 > ns.last %}{{ '<think>\n' + r + '\n</think>\n\n' }}{% endif %}{{ c }}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' }}{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Gemma: another name for the assistant; no system message.
TURNS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# Words alone, and no token that ends an answer.
WORDS = "{% for m in messages %}{{ m.role | upper + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
STYLES = {"brackets": BRACKETS, "thoughts": THOUGHTS, "turns": TURNS, "words": WORDS}
"""Name -> a template without marks."""


def write_rows(folder: Path, name: str, number: int = 3) -> Path:
    """Write a folder whose splits have a row of ``ROWS`` several times, each with another number at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps({**ROWS[name], "id": f"{split}-{row}"}) for row in range(number)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder
