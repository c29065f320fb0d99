"""The template review: it must let real templates pass, and stop what reaches for the renderer."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import UntrustedDataError
from casemate.formats.chat_template import TEMPLATE_LIMIT, review_template

# Written for this test; each uses constructs that templates of well-known model families use.
HARMLESS = {
    "chatml": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "roles must alternate": "{%- for m in messages -%}{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('roles must alternate') -}}{%- endif -%}{%- endfor -%}",
    "namespace and slices": "{%- set ns = namespace(last=-1, text='') -%}{% for m in messages[1:] %}"
    "{%- set ns.last = loop.index0 - 1 %}{{ messages[ns.last].content[:-1] }}{% endfor %}",
    "macros that call each other": "{%- macro one(value, depth=0) -%}{{- value | tojson(indent=4) -}}{%- endmacro -%}"
    "{%- macro two(value) -%}{{- one(value, depth=1) | trim -}}{%- endmacro -%}{{ two(tools) }}",
    "text methods": "{% set parts = (text.split('</think>') | last).strip('\\n') %}{{ parts.replace('a', 'b') }}"
    "{% if text.startswith('x') and not text.endswith('y') %}{{ text.lstrip() }}{% endif %}",
    "dictionaries": "{% for key, item in tool.items() if key != 'return' %}{{ key ~ ': ' ~ item.get('type', {}) }}"
    "{% endfor %}{{ {'a': {'b': [1, 2]}} | tojson }}{{ (x or {}) | dictsort }}",
    "tests and filters": "{{ m.content if m.content is string else m.content | map('upper') | join(', ') }}"
    "{{ tools | selectattr('type', 'equalto', 'function') | list | length }}{{ x is defined and (y is not none) }}",
    "the date": "{{ strftime_now('%Y-%m-%d') }}",
    "continued text": '{{ "You say \\"hello\\".\\\n" + x }}',
    "a variable called attr": "{% for attr in attrs %}{{ attr[0] ~ attr[1] }}{% endfor %}",
    "a message field called system": "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}",
    "code only in a comment": "{# ''.__class__ {% include 'x' %} #}text {} with % braces } { %}",
    "raw text": "{% raw %}{{ x.__class__ }}{% endraw %}",
    "whitespace control": "{%+ if x -%}{{+ y -}}{%- endif +%}",
    "in a tuple": "{% if t in ('number', 'integer') %}{{ -(x) }}{% elif t == 'a' %}{% endif %}",
    "generation block": "{% generation %}{{ x }}{% endgeneration %}{% break %}{% continue %}",
}
HOSTILE = {
    "attribute chain": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "subscript chain": "{{ ''['__class__'] }}",
    "hex escapes": "{{ ''['\\x5f\\x5fclass'] }}",
    "unicode escapes": "{{ ''['\\u005f\\U0000005fclass'] }}",
    "octal escapes": "{{ ''['\\137\\137class'] }}",
    "named characters": "{{ ''['\\N{LOW LINE}'] }}",
    "split over adjacent texts": "{{ x['_' '_class_' '_'] }}",
    "the attr filter": "{{ x | attr('content') }}",
    "the attr filter by name": "{{ x | map('attr', 'content') }}",
    "format strings": "{{ '{0.x}'.format(y) }}",
    "format_map": "{{ '{x}'.format_map(y) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "from import": "{%- from 'os' import system -%}",
    "extends": "{% extends 'base' %}",
    "a block": "{% block a %}{% endblock %}",
    "the template itself": "{{ self }}",
    "cycler": "{{ cycler.x }}",
    "lipsum": "{{ lipsum() }}",
    "joiner": "{{ joiner('x') }}",
    "a call of a subscript": "{{ x['y']('id') }}",
    "a call of a result": "{{ range(1)() }}",
    "a call of a grouping": "{{ (x)('id') }}",
    "a call of a variable": "{% set f = x %}{{ f('id') }}",
    "an unknown method": "{{ x.popen('id') }}",
    "an unknown function": "{{ open('/etc/passwd') }}",
    "a rebound function": "{% set range = x %}{{ range('id') }}",
    "an unknown filter": "{{ x | pprint }}",
    "an unknown filter with arguments": "{{ x | custom('y') }}",
    "an unknown statement": "{% debug %}",
    "an empty statement": "{%  %}",
    "an unfinished block": "{% if x",
    "an unfinished output": "{{ x",
    "an unfinished comment": "{# x",
    "an unfinished raw block": "{% raw %} x",
    "an unfinished text": "{{ 'x }}",
    "brackets that differ": "{{ (x] }}",
    "too many brackets": "{{ " + "(" * 65 + ")" * 65 + " }}",
    "too long": "x" * (TEMPLATE_LIMIT + 1),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_real_templates_do_is_accepted(name):
    review_template(HARMLESS[name])


@pytest.mark.parametrize("name", HOSTILE)
def test_what_attacks_do_is_refused(name):
    with pytest.raises(UntrustedDataError) as refused:
        review_template(HOSTILE[name])
    assert refused.value.check == "chat-template"


@given(st.text(alphabet="{}%#-'\"_()[]|.\\ \nabcself=:", max_size=80))
def test_any_text_is_accepted_or_refused_and_nothing_else(text):
    for block in (text, "{{ " + text + " }}", "{% set x = " + text + " %}"):
        with contextlib.suppress(UntrustedDataError):
            review_template(block)


@given(st.text(alphabet="abc.[]'|() ", max_size=20), st.text(alphabet="abc.[]'|() ", max_size=20))
def test_no_code_with_a_dunder_is_accepted(before, after):
    with pytest.raises(UntrustedDataError):
        review_template("{{ " + before + "__" + after + " }}")


@given(st.sampled_from(sorted(HARMLESS)), st.sampled_from(sorted(HOSTILE)[:20]))
def test_an_attack_is_found_wherever_it_stands(harmless, hostile):
    with pytest.raises(UntrustedDataError):
        review_template(HARMLESS[harmless] + HOSTILE[hostile])


def test_a_template_at_the_limit_is_reviewed_quickly():
    review_template(("{{ '" + "x" * 90 + "' }}") * (TEMPLATE_LIMIT // 100))
