#!/usr/bin/env python3
"""Writes tests/data/chat_template_goldens.json: what jinja2 renders with the settings of transformers.

The settings are those of `_compile_jinja_template` in transformers' `utils/chat_template_utils.py`. The templates
exercise the constructs that published chat templates use. Needs jinja2 (made with 3.1.6):

    python3 tools/chat_template_goldens.py
"""

import json
import pathlib

import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    """transformers' AssistantTracker, without the tracking: the tag's body is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_support"), [], [], body).set_lineno(line)

    def _support(self, caller):
        return caller()


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
ENVIRONMENT.filters["tojson"] = tojson

SPECIALS = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}

CHAT = [
    {"role": "user", "content": "  Sort a list.\n"},
    {"role": "assistant", "content": "<think>hm</think>\n\nUse sorted(). <&'\"é>"},
    {"role": "user", "content": "In C?"},
]
SYSTEM = [{"role": "system", "content": "Be brief."}] + CHAT

TEMPLATES = [
    # ChatML, as Qwen and many others write it.
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # The same over several lines: trim_blocks and lstrip_blocks.
    "{% for m in messages %}\n    {% if m.role == 'user' %}\nU: {{ m.content }}\n    {% elif m.role == 'system' %}\n"
    "S: {{ m.content }}\n    {% else %}\nA: {{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    "{% if add_generation_prompt %}\nA:\n{% endif %}\n",
    # Windows line breaks, trailing newline.
    "{% for m in messages %}\r\n{{ m.content }}\r\n{% endfor %}\r\nend\r\n",
    "end\n\n",
    # Llama 2's loop_messages, offset slices, strip and the modulo check.
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    # Python's string methods, negative indices, slices with a step.
    "{%- for m in messages %}{{ m.content.split('</think>')[-1].lstrip('\\n') }}|{{ m.content.strip().upper() }}|"
    "{{ m.content.startswith('<think>') }}|{{ m.content.endswith('?') }}|{{ m.content.replace('o', '0') }}|"
    "{{ m.content.rstrip() }}|{{ m.content.find('s') }}\n{% endfor %}",
    "{%- for m in messages[::-1] %}{{ loop.index }}{{ m.role | upper }} {% endfor %}{{ messages[-1].content }}",
    # Namespaces, loop variables, loop controls.
    "{%- set ns = namespace(n=0, last=none) %}{%- for m in messages %}{%- if m.role == 'assistant' %}{%- continue %}"
    "{%- endif %}{%- set ns.n = ns.n + 1 %}{%- set ns.last = m.content %}{%- endfor %}{{ ns.n }} {{ ns.last }}",
    "{%- for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ loop.first }}{{ loop.length }}"
    "{{ loop.previtem.role if loop.previtem is defined }}{% endfor %}",
    # tojson, items, dictionaries.
    "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=4) }}\n{{ {'b': [1, 2.5, none, true], 'a': {}} | tojson }}",
    "{%- for k, v in messages[0].items() %}{{ k }}={{ v | trim }};{% endfor %}{{ messages[0].get('name', 'nobody') }}"
    "{{ messages[0]['name'] }}{{ messages[0].name is defined }}",
    # Filters and tests.
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} "
    "{{ messages[0].content is string }} {{ messages is iterable }} {{ messages[0] is mapping }} {{ tools is none }} "
    "{{ documents is none }} {{ undefined_name is undefined }} {{ messages | length }} {{ 'x' in 'xyz' }} "
    "{{ messages[0].role not in ['system'] }}",
    # Macros, ternaries, whitespace control, comments.
    "{#- a comment -#}\n{%- macro turn(role, text='') -%}\n  [{{ role }}: {{ text | trim }}]\n{%- endmacro -%}\n"
    "{%- for m in messages -%}\n  {{ turn(m.role, m.content) }}\n{%- endfor %}\n{{ 'yes' if add_generation_prompt else 'no' }}\n",
    # The tag that marks what training shall learn.
    "{%- for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{{ eos_token }}"
    "{%- endgeneration -%}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    # Special tokens, None and booleans as text.
    "{{ bos_token }}{{ none }} {{ true }} {{ 1 == 1.0 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 2 ** 3 }} {{ 'a' ~ 1 ~ none }}",
    "{{ '%s' | format('x') }} {{ ['a', 'b'] }} {{ 'ab' * 2 }} {{ 'x y'.title() }} {{ 'a,b'.split(',') | first }}",
]


def main():
    goldens = []
    for template in TEMPLATES:
        for messages, add in [(CHAT, True), (SYSTEM, False)]:
            rendered = ENVIRONMENT.from_string(template).render(
                messages=messages, tools=None, documents=None, add_generation_prompt=add, **SPECIALS
            )
            goldens.append(
                {"template": template, "messages": messages, "add_generation_prompt": add, "rendered": rendered}
            )
    path = pathlib.Path(__file__).parent.parent / "tests" / "data" / "chat_template_goldens.json"
    path.write_text(json.dumps(goldens, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
