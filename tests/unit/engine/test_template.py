import time

import pytest

from mobillama.core.errors import UserError
from mobillama.engine.template import render

MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' + message['content'] | trim ~ '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""


def test_a_usual_template_renders_as_transformers_renders_it():
    from transformers.utils.chat_template_utils import render_jinja_template

    ours = render(CHATML, MESSAGES)
    theirs, _ = render_jinja_template([MESSAGES], chat_template=CHATML, add_generation_prompt=True)
    assert ours == theirs[0]
    assert ours.endswith("hi<|im_end|>\n<|im_start|>assistant\n")


def test_generation_marks_loop_controls_macros_and_json_are_understood():
    template = (
        "{% macro say(x) %}<{{ x }}>{% endmacro %}"
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}"
        "{% generation %}{{ say(m.content) }}{% endgeneration %}{% endfor %}{{ messages[0] | tojson }}"
    )
    assert render(template, MESSAGES) == '<be kind>{"role": "system", "content": "be kind"}'


@pytest.mark.parametrize(
    "escape",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self._TemplateReference__context.environment }}{{ cycler.__init__.__globals__.os.system('id') }}",
        "{{ raise_exception.__globals__ }}{{ raise_exception.__globals__['json'] }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ 'x' | attr('__class__') | attr('__mro__') }}{{ ('x' | attr('__class__')).mro() }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_reaching_out_of_the_sandbox_is_refused(escape):
    with pytest.raises(UserError, match="chat template"):
        render(escape, MESSAGES)


@pytest.mark.parametrize(
    "bomb",
    [
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ 'x'.ljust(1000000000) }}",
        "{{ '%01000000000d' % 1 }}",
        "{{ 'x' | center(1000000000) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ ('x' * 9999).replace('x', 'y' * 9999) }}",
        "{{ ['x' * 999] * 999 | join('y' * 9999) }}{{ (['x'] * 9999) | join('y' * 9999) }}",
        "(" * 300_000,
        "{{ " + "(" * 50_000 + " }}",
    ],
)
def test_exhausting_time_or_memory_is_refused_quickly(bomb):
    started_at = time.process_time()
    with pytest.raises(UserError, match="chat template"):
        render(bomb, MESSAGES)
    assert time.process_time() - started_at < 20  # a bound, not a timing: the bombs would run for days


def test_what_the_template_refuses_is_said_in_its_words():
    with pytest.raises(UserError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", MESSAGES)
