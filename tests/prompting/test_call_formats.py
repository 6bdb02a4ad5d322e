"""The parsers of each format of calls: what they find, however the text is cut."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.bundle.specs import ToolFormat
from appliance.prompting import Tool, kimi, lfm2, minimax_m3
from appliance.prompting.deepseek import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR
from appliance.prompting.dsml import DSML, DSML_V4
from appliance.prompting.formats import FORMATS
from appliance.prompting.harmony import HarmonyParser
from appliance.prompting.hy3 import HY3
from appliance.prompting.json_call import MAX_WHOLE_CHARS
from appliance.prompting.muse import MUSE, MuseParser
from appliance.prompting.python_arguments import python_literal
from appliance.prompting.xml_call import typed
from tests.fakes.chat_formats import SAID, TEMPLATES
from tests.prompting.reading import Parser, read, splits
from tests.prompting.turns import TURNS, read_turn

TOOL = Tool(
    "f",
    parameters_json=json.dumps(
        {
            "properties": {
                "s": {"type": "string"},
                "n": {"type": "integer"},
                "b": {"type": ["boolean", "null"]},
                "l": {"$ref": "#/$defs/list"},
            },
            "$defs": {"list": {"anyOf": [{"type": "array"}, {"type": "object"}]}},
        }
    ),
)
NAMES: list[ToolFormat] = [name for name in get_args(ToolFormat) if name]


def parser_of(name: ToolFormat) -> Parser:
    numbers = itertools.count()
    return FORMATS[name].parser(lambda: f"call_{next(numbers)}", (TOOL,))


BLOCK = f'{CALL_BEGIN}function{SEPARATOR}f\n```json\n{{"a": 1}}\n```{CALL_END}'
BARE = f'{CALL_BEGIN}f{SEPARATOR}{{"a": "<}}"}}{CALL_END}'
INVOKE = '<minimax:tool_call>\n<invoke name="f">\n'
D_F = f'{DSML.block[0]}\n{DSML.call[0]}f">\n'
V4_F = f'{DSML_V4.block[0]}\n{DSML_V4.call[0]}f">\n'
D_P, D_END = DSML.parameter
M = minimax_m3.MARK
M_F = f'{M}<tool_call>\n{M}<invoke name="f">'
FUNCTION = "<tool_call>\n<function=f>\n"
GLM_F = "<tool_call>f\n"
H_F = f"{HY3.block[0]}\n{HY3.call[0]}f{HY3.until[0]}\n"
H_L = f"{HY3.parameter[0]}l{HY3.name_end}\n{HY3.value}"
MUSE_F = ' to=f<|message|><atem:function_calls>\n<atem:invoke name="f">\n'
MUSE_END = "</atem:invoke>\n</atem:function_calls>"
DQ = " a<b "
TO_F = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>"
K_BEGIN, K_END = kimi.BEGIN, kimi.END
K_F = "<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
L_BEGIN, L_END = lfm2.TAGS
L_F = f"{L_BEGIN}[f("
CASES: list[tuple[ToolFormat, str, str, str, list[tuple[str, str]]]] = [
    ("llama", '{"name": "f", "parameters": {"a": "}"}}', "", "", [("f", '{"a": "}"}')]),
    ("llama", ' <|python_tag|>{"name": "f", "arguments": {}}', "", "", [("f", "{}")]),
    ("llama", '{"type": "function", "name": "f", "parameters": {}}', "", "", [("f", "{}")]),
    ("llama", '{"parameters": {"a": 1}, "name": "f"}\n', "", "", [("f", '{"a": 1}')]),
    ("llama", '{"name": "f", "parameters": "{}"}', "", "", [("f", "{}")]),
    ("llama", '{"name":"f","parameters":{},"id":{}}; {"name":"g","parameters":{}}', "", "",
     [("f", "{}"), ("g", "{}")]),
    ("llama", '{"name": "f", "parameters": {"a": "cut', "", "", [("f", '{"a": "cut')]),
    ("llama", '{"city": "Oslo"} is JSON', '{"city": "Oslo"} is JSON', "", []),
    ("llama", '{"name": "Ann", "age": 3}', '{"name": "Ann", "age": 3}', "", []),
    ("llama", '{"name": "f"', '{"name": "f"', "", []),
    ("llama", "<|python_tag|>print(1)", "<|python_tag|>print(1)", "", []),
    ("llama", ' I say {"name": "f", "parameters": {}}',
     ' I say {"name": "f", "parameters": {}}', "", []),
    ("llama", '{"name": "f", "parameters": {}} so', "so", "", [("f", "{}")]),
    ("llama4", '<|python_start|><|python_end|>{"name": "f", "parameters": {"a": 1}}'
     '{"name": "g", "parameters": {}}', "", "", [("f", '{"a": 1}'), ("g", "{}")]),
    ("llama4", '<|python_start|>Let me.\n<|python_end|>{"name": "f", "parameters": {}}',
     "Let me.", "", [("f", "{}")]),
    ("llama4", ' <|python_start|>{"name": "f", "parameters": {}}<|python_end|>\n', "", "",
     [("f", "{}")]),
    ("llama4", "<|python_start|>print({1: 2})<|python_end|>", "print({1: 2})", "", []),
    ("llama4", '{"city": "Oslo"} is JSON', '{"city": "Oslo"} is JSON', "", []),
    ("llama4", ' I say {"name": "f", "parameters": {}}',
     ' I say {"name": "f", "parameters": {}}', "", []),
    ("llama4", '{"nam<|python_end|>{"name": "f", "parameters": {}}', '{"nam', "", [("f", "{}")]),
    ("llama4", '{"name": "f"', '{"name": "f"', "", []),
    ("llama4", "a <|python_sta", "a <|python_sta", "", []),
    ("gemma4", 'So.\n<|tool_call>call:f{s:<|"|>a "b"\n<|"|>,n:-4.5,o:{p:None,q:[true,[]]}}'
     "<tool_call|><|tool_call>call:g{}<tool_call|>", "So.", "",
     [("f", '{"s": "a \\"b\\"\\n", "n": -4.5, "o": {"p": null, "q": [true, []]}}'), ("g", "{}")]),
    ("gemma4", '<|tool_call>call:f{<|"|>a b<|"|>:x y,}<tool_call|>', "", "",
     [("f", '{"a b": "x y"}')]),
    ("gemma4", '<|tool_call>call:f{s:<|"|>cut <|"', "", "", [("f", '{"s": "cut <|\\"')]),
    ("gemma4", "<|tool_call>call:f{s:tr", "", "", [("f", '{"s": ')]),
    ("gemma4", "<|tool_call>no call<tool_call|>", "<|tool_call>no call", "", []),
    ("gemma4", "<|tool_call>call:f", "<|tool_call>call:f", "", []),
    ("deepseek", f"Well. {CALLS_BEGIN}{BLOCK}\n{BLOCK}{CALLS_END}", "Well.", "",
     [("f", '{"a": 1}')] * 2),
    ("deepseek_v31", f"{CALLS_BEGIN}{BARE}{BARE}{CALLS_END} x", " x", "",
     [("f", '{"a": "<}"}')] * 2),
    ("deepseek", BLOCK, "", "", [("f", '{"a": 1}')]),
    ("deepseek", f"{CALLS_BEGIN}{BARE} and", "and", "", [("f", '{"a": "<}"}')]),
    ("deepseek", f"{CALL_BEGIN}no call{CALL_END}!", f"{CALL_BEGIN}no call{CALL_END}!", "", []),
    ("deepseek", f"a {CALLS_BEGIN[:6]}", f"a {CALLS_BEGIN[:6]}", "", []),
    ("deepseek_v31", f'{CALLS_BEGIN}{CALL_BEGIN}f{SEPARATOR}{{"a', "", "", [("f", '{"a')]),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "x"}, '
     '{"arguments": {}, "name": "g"}]', "", "", [("f", '{"a": 1}'), ("g", "{}")]),
    ("mistral", 'So \n[TOOL_CALLS] [{"name": "f", "arguments": {}}]', "So", "", [("f", "{}")]),
    ("mistral", '[TOOL_CALLS][{"nam": 1}]', '[TOOL_CALLS][{"nam": 1}]', "", []),
    ("mistral", "[TOOL_CALLS][1]", "[TOOL_CALLS][1]", "", []),
    ("mistral", "[TOOL_CALLS", "[TOOL_CALLS", "", []),
    ("mistral_v11", '[TOOL_CALLS]f[CALL_ID]abcabcabc[ARGS]{"a": []}[TOOL_CALLS]g[ARGS]{}', "", "",
     [("f", '{"a": []}'), ("g", "{}")]),
    ("mistral_v13", '[TOOL_CALLS]f{"a": "["}', "", "", [("f", '{"a": "["}')]),
    ("mistral_v13", "[TOOL_CALLS]no call at all", "[TOOL_CALLS]no call at all", "", []),
    ("minimax", f'Hm\n{INVOKE}<parameter name="s">a "b"\n</parameter>\n'
     '<parameter name="n">7</parameter>\n</invoke>\n<invoke name="g">\n</invoke>\n'
     "</minimax:tool_call>", "Hm", "", [("f", '{"s": "a \\"b\\"\\n", "n": 7}'), ("g", "{}")]),
    ("minimax", f'{INVOKE}<parameter name="l">["</parameter>"]</parameter></invoke>', "", "",
     [("f", '{"l": ["</parameter>"]}')]),
    ("minimax", f'{INVOKE}<parameter name="n">no number</parameter><parameter name="b">null'
     '</parameter><parameter name="x">[1]</parameter><parameter name="y">"q"</parameter></invoke>',
     "", "", [("f", '{"n": "no number", "b": null, "x": [1], "y": "\\"q\\""}')]),
    ("minimax", f'{INVOKE}<parameter name="s">12 <b', "", "", [("f", '{"s": "12 <b')]),
    ("minimax", f'{INVOKE}<invoke name="g"></invoke>', "", "", [("f", "{}"), ("g", "{}")]),
    ("dsml", f'Hm\n\n{D_F}{D_P}s" string="true">a "b"\n{D_END}\n{D_P}n" string="false">7{D_END}\n'
     f'{D_P}l" string="false">["{D_END}"]{D_END}\n{DSML.call[1]}\n{DSML.call[0]}g">\n{DSML.call[1]}'
     f"\n{DSML.block[1]}", "Hm", "",
     [("f", '{"s": "a \\"b\\"\\n", "n": 7, "l": ["' + D_END + '"]}'), ("g", "{}")]),
    ("dsml", f'{D_F}{D_P}n" string="true">7{D_END}{D_P}s" string="false">null{D_END}{D_P}x" string='
     f'"false">no{D_END}', "", "", [("f", '{"n": "7", "s": null, "x": "no"')]),
    ("dsml", f'{D_F}{D_P}s" string="true">12 </\uff5c', "", "", [("f", '{"s": "12 </\uff5c')]),
    ("dsml_v4", f'Hm\n\n{V4_F}{D_P}s" string="true">a{D_END}\n{DSML.call[1]}\n{DSML_V4.block[1]}',
     "Hm", "", [("f", '{"s": "a"}')]),
    ("dsml", f"a {DSML.block[0][:9]}", f"a {DSML.block[0][:9]}", "", []),
    ("minimax_m3", f"Hm\n{M_F}{M}<s>a \"b\"\n{M}</s>{M}<n>7{M}</n>{M}<l>{M}<item>x{M}</item>"
     f"{M}<item>{M}<k>1{M}</k>{M}</item>{M}</l>{M}<b>true{M}</b>{M}</invoke>\n"
     f'{M}<invoke name="g">{M}</invoke>\n{M}</tool_call>', "Hm", "",
     [("f", '{"s": "a \\"b\\"\\n", "n": 7, "l": ["x", {"k": 1}], "b": true}'), ("g", "{}")]),
    ("minimax_m3", f"{M_F}{M}<l>{M}</l>{M}<x>{M}<y>{M}<z>1{M}</x>{M}<n>no{M}</n>{M}</tool_call>.",
     ".", "", [("f", '{"l": [], "x": {"y": {"z": 1}}, "n": "no"}')]),
    ("minimax_m3", f"{M_F}{M}<s>12 {M[:5]}", "", "", [("f", '{"s": "12 ')]),
    ("minimax_m3", f"{M_F}{M}<s>1{M}<a>2{M} 3{M}</s>{M}</invoke>", "", "",
     [("f", '{"s": "12 3"}')]),
    ("minimax_m3", f"so{M}", f"so{M}", "", []),
    ("qwen_coder", f"{FUNCTION}<parameter=s>\na\n\n</parameter>\n<parameter=b>\nTrue\n</parameter>"
     "\n<parameter=n>\n3\n</parameter>\n</function>\n</tool_call>", "", "",
     [("f", '{"s": "a\\n", "b": true, "n": 3}')]),
    ("qwen_coder", f"{FUNCTION}<parameter=s>\n\n</parameter></function></tool_call>.", ".", "",
     [("f", '{"s": ""}')]),
    ("glm", f"Hm\n{GLM_F}<arg_key>s</arg_key>\n<arg_value>a \"b\"\n</arg_value>\n<arg_key>n"
     "</arg_key>\n<arg_value>7</arg_value>\n</tool_call>\n<tool_call>g\n</tool_call>\n", "Hm", "",
     [("f", '{"s": "a \\"b\\"\\n", "n": 7}'), ("g", "{}")]),
    ("glm_v47", "<tool_call>f<arg_key>l</arg_key><arg_value>[\"</arg_value>\"]</arg_value>"
     "</tool_call><tool_call>g</tool_call>", "", "",
     [("f", '{"l": ["</arg_value>"]}'), ("g", "{}")]),
    ("hy3", f"Hm{H_F}{H_L}[1]{HY3.parameter[1]}\n{HY3.call[1]}\n{HY3.call[0]}g{HY3.call[1]}"
     f"{HY3.block[1]}\n", "Hm", "", [("f", '{"l": [1]}'), ("g", "{}")]),
    ("hy3", f"{H_F}{HY3.block[1]}So", "So", "", [("f", "{}")]),
    ("hy3", f"{HY3.block[0]}\n{HY3.call[0]}f", "", "", []),
    ("glm", f"{GLM_F}<arg_key>s</arg_key><arg_key>n</arg_key> x <arg_value>1</arg_value>"
     "</tool_call>.", ".", "", [("f", '{"n": 1}')]),
    ("glm", f"{GLM_F}<arg_key>s</arg_key>\n<tool_call>g</tool_call>", "", "",
     [("f", "{}"), ("g", "{}")]),
    ("glm", f"{GLM_F}<arg_key>s</arg_key>\n<arg_value>12 <", "", "", [("f", '{"s": "12 <')]),
    ("glm", "<tool_call></tool_call>So", "So", "", []),
    ("glm", "<tool_call>f", "", "", []),
    ("seed_oss", "Hm\n<seed:tool_call>\n<function=f>\n<parameter=s>\na\n</parameter>\n"
     "<parameter=n>3</parameter>\n</function>\n</seed:tool_call>.", "Hm.", "",
     [("f", '{"s": "\\na\\n", "n": 3}')]),
    ("seed_oss", "<seed:tool_call><function=f><parameter=l>['a', None, {'b': True}]</parameter>"
     "<parameter=b>False</parameter></function></seed:tool_call>", "", "",
     [("f", '{"l": ["a", null, {"b": true}], "b": false}')]),
    ("seed_oss", "<seed:tool_call><function=f><parameter=l>[f(1)]</parameter></function>"
     "</seed:tool_call>", "", "", [("f", '{"l": "[f(1)]"}')]),
    ("seed_oss", f"<seed:tool_call><function=f><parameter=l>{'(' * 900}</parameter></function>", "",
     "", [("f", f'{{"l": "{"(" * 900}"}}')]),
    ("cohere", 'Plan.\n<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "f", '
     '"parameters": {"a": "{"}},\n    {"tool_name": "g", "parameters": {}}\n]<|END_ACTION|>',
     "Plan.", "", [("f", '{"a": "{"}'), ("g", "{}")]),
    ("cohere", '<|START_ACTION|>[{"name": "f", "parameters": {}}]',
     '<|START_ACTION|>[{"name": "f", "parameters": {}}]', "", []),
    ("apertus", 'So <|tools_prefix|>[{"f": {"a": "]}"}}, {"g":{}}]<|tools_suffix|>', "So", "",
     [("f", '{"a": "]}"}'), ("g", "{}")]),
    ("apertus", '<|tools_prefix|> [\n{ "f" : {"a": {}}} ] and', " and", "", [("f", '{"a": {}}')]),
    ("apertus", '<|tools_prefix|>[{"f": 1}]', '<|tools_prefix|>[{"f": 1}]', "", []),
    ("apertus", "<|tools_prefix|>none", "<|tools_prefix|>none", "", []),
    ("apertus", '<|tools_prefix|>[{"f', '<|tools_prefix|>[{"f', "", []),
    ("apertus", '<|tools_prefix|>[{"f": {"a', "", "", [("f", '{"a')]),
    ("harmony", "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
     f'{TO_F}{{"a": 1}}<|call|>', "", "Hm.", [("f", '{"a": 1}')]),
    ("harmony", ' to=functions.f<|channel|>commentary json<|message|>{"a": 1}', "", "",
     [("f", '{"a": 1}')]),
    ("harmony", "<|channel|>final<|message|>Yes < no<|return|>", "Yes < no", "", []),
    ("harmony", "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>final"
     "<|message|>Then.", "First.\n\nThen.", "", []),
    ("harmony", "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis"
     "<|message|>b<|channel|>final<|message|>c", "c", "a\n\nb", []),
    ("harmony", "<|channel|>analysis to=python<|message|>1+1<|call|>", "", "1+1", []),
    ("harmony", "no channels <|at all", "no channels <|at all", "", []),
    ("harmony", "<|channel|>anal", "", "", []),
    ("muse", " to=self<|message|>Hm.<|eom|><|start|>assistant to=user<|message|>Yes < no<|eot|>",
     "Yes < no", "Hm.", []),
    ("muse", f" to=self<|message|>Hm.<|eom|><|start|>assistant{MUSE_F}"
     f'<atem:parameter name="s">{DQ}</atem:parameter>\n<atem:parameter name="n">7</atem:parameter>'
     f"\n{MUSE_END}<|eot|>", "", "Hm.", [("f", '{"s": " a<b ", "n": 7}')]),
    ("muse", f"{MUSE_F}{MUSE_END}<|eom|><|start|>assistant{MUSE_F}{MUSE_END}", "", "",
     [("f", "{}"), ("f", "{}")]),
    ("muse", " to=browser<|message|>look<|eom|><|start|>assistant<|message|>Well.", "Well.",
     "look", []),
    ("muse", ' to=f<|message|><atem:function_calls><atem:invoke name="f">'
     '<atem:parameter name="s">cut', "", "", [("f", '{"s": "cut')]),
    ("muse", "no header <|at all", "no header <|at all", "", []),
    ("muse", " to=sel", "", "", []),
    ("kimi_k2", f'Well. {K_BEGIN}{K_F}{{"a": "<}}"}}<|tool_call_end|>\n{K_F}{{}}<|tool_call_end|>'
     f"{K_END} x", "Well. x", "", [("f", '{"a": "<}"}'), ("f", "{}")]),
    ("kimi_k2", f'{K_BEGIN}<|tool_call_begin|>a.b<|tool_call_argument_begin|> {{"a', "", "",
     [("a.b", '{"a')]),
    ("kimi_k2", f"{K_F}{{}}", "", "", [("f", "{}")]),
    ("kimi_k2", "<|tool_call_begin|>functions.f:0<|tool_call_end|>.",
     "<|tool_call_begin|>functions.f:0<|tool_call_end|>.", "", []),
    ("kimi_k2", f"a {K_BEGIN[:9]}", f"a {K_BEGIN[:9]}", "", []),
    ("granite", '<|tool_call|>[{"name": "f", "arguments": {"a": 1}}, {"arguments": {}, "name": '
     '"g"}]', "", "", [("f", '{"a": 1}'), ("g", "{}")]),
    ("granite", '<|tool_call|>[{"nam": 1}]', '<|tool_call|>[{"nam": 1}]', "", []),
    ("granite", "<|tool_call|>[]", "<|tool_call|>[]", "", []),
    ("granite", "<|tool_call|>[,1]", "<|tool_call|>[,1]", "", []),
    ("granite", "<|tool_call|>none", "<|tool_call|>none", "", []),
    ("lfm2", f"So.\n{L_F}s='it\\'s \"b\" \\u00e9\\x41\\q', n=-4.5, b=True, l=[1, 'x', None]), "
     f"g()]{L_END}Next.", "So.Next.", "",
     [("f", '{"s": "it\'s \\"b\\" \\u00e9A\\\\q", "n": -4.5, "b": true, "l": [1, "x", null]}'),
      ("g", "{}")]),
    ("lfm2", f"{L_F}s='it's (\"so\")\n', l={{'a': {{}}, \"b\": (1, false)}})]{L_END}", "", "",
     [("f", '{"s": "it\'s (\\"so\\")\\n", "l": {"a": {}, "b": [1, false]}}')]),
    ("lfm2", f"{L_F}'x', 3, b=None,)]{L_END}", "", "", [("f", '{"s": "x", "n": 3, "b": null}')]),
    ("lfm2", f"{L_BEGIN}g(7, a=)]{L_END}", "", "", [("g", '{"0": 7, "a": null}')]),
    ("lfm2", f"{L_F}s=New York, n=day(1, 2), l={{a, b: 1,}})]{L_END}", "", "",
     [("f", '{"s": "New York", "n": "day(1, 2)", "l": {"a": null, "b": 1}}')]),
    ("lfm2", f'{L_BEGIN}[{{"name": "f", "arguments": {{"a": 1}}}}, g(a==1)]{L_END}', "", "",
     [("f", '{"a": 1}'), ("g", '{"0": "a==1"}')]),
    ("lfm2", f"{L_F}s='cut", "", "", [("f", '{"s": "cut')]),
    ("lfm2", f"{L_F}s=\"cut\"", "", "", [("f", '{"s": "cut"')]),
    ("lfm2", f"{L_F}l=[1{L_END}.", ".", "", [("f", '{"l": [1')]),
    ("lfm2", f"{L_BEGIN}f(n=1){L_END}", "", "", [("f", '{"n": 1}')]),
    ("lfm2", f"{L_BEGIN}[no call]{L_END}", f"{L_BEGIN}[no call]", "", []),
    ("lfm2", f"{L_BEGIN}[f", f"{L_BEGIN}[f", "", []),
    ("pythonic", "[f(s='a', n=1), g()]", "", "", [("f", '{"s": "a", "n": 1}'), ("g", "{}")]),
    ("pythonic", " <|python_start|>[g(a=1)]<|python_end|>\n[g(a=2)] so", "so", "",
     [("g", '{"a": 1}'), ("g", '{"a": 2}')]),
    ("pythonic", "[g(a=1.5e3)]", "", "", [("g", '{"a": 1500.0}')]),
    ("pythonic", "[f('x')]", "", "", [("f", '{"s": "x"}')]),
    ("pythonic", " [ see(1) the list]", " [ see(1) the list]", "", []),
    ("pythonic", "[1, 2]", "[1, 2]", "", []),
    ("pythonic", "[g(a==1)]", "[g(a==1)]", "", []),
    ("pythonic", "[link](f(a=1))", "[link](f(a=1))", "", []),
    ("pythonic", "Let me [f(a=1)]", "Let me [f(a=1)]", "", []),
    ("pythonic", "[f", "[f", "", []),
    ("glm4", 'f\n{"n": 1}', "", "", [("f", '{"n": 1}')]),
    ("glm4", '\nLet me.<|assistant|>f \n\n{"n": 1}<|assistant|>f\n{}\n', "\nLet me.", "",
     [("f", '{"n": 1}'), ("f", "{}")]),
    ("glm4", 'g\n{"n": 1}', 'g\n{"n": 1}', "", []),
    ("glm4", "\nf\n is a name", "\nf\n is a name", "", []),
    ("glm4", 'f\n{"n": 1} so', "so", "", [("f", '{"n": 1}')]),
    ("glm4", 'f\n{"n', "", "", [("f", '{"n')]),
    ("glm4", "f\n", "f\n", "", []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "answer", "reasoning", "calls"), CASES)
def test_calls_are_found_however_the_text_is_cut(
    name: ToolFormat, text: str, answer: str, reasoning: str, calls: list[tuple[str, str]]
) -> None:
    expected = [(f"call_{i}", call, arguments) for i, (call, arguments) in enumerate(calls)]
    for parts in splits(text):
        assert read(parser_of(name), parts) == (answer, reasoning, expected), parts


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_template_writes_is_read_back(name: ToolFormat, turn: str) -> None:
    message = TURNS[turn]
    if len(message.tool_calls) == 1 or name not in ("llama", "harmony"):
        read_turn(TEMPLATES[name], name, message, says=name in SAID)


JSON = ['{"name": "f", "arguments": ', '"parameters": ', '"x"', "{", "}", "[", "]", ",", '"', "\\"]
PYTHON = ["s=", "=", "'", "')", "',", "(", ")", ")]", ":", "\\u00e9", "\\x4", "True", "[1, ", "{'"]
INSIDE: dict[ToolFormat, list[str]] = {
    "llama": [";", '{"name": "f", "parameters": {}}'],
    "llama4": [";", '{"name": "f", "parameters": {}}'],
    "gemma4": ["call:f{", "call:", "s:", '<|"|>', "}<tool_call|>", "None"],
    "deepseek": ["function", "f", "\n```json\n", "\n```", BLOCK],
    "deepseek_v31": ["f", BARE],
    "mistral": [", "],
    "mistral_v11": ["f"],
    "minimax": ['<invoke name="', "</invoke>", '<parameter name="', "</parameter>", 's">', 'n">'],
    "dsml": [*DSML.block, 'f">\n', *DSML.call, *DSML.parameter, 's" string="true">', *DSML.kinds],
    "dsml_v4": [*DSML_V4.block, 'f">\n', *DSML.call, *DSML.parameter, 's" string="true">'],
    "minimax_m3": [
        '<invoke name="f">',
        "</invoke>",
        "<s>",
        "</s>",
        "<l>",
        "<item>",
        "</item>",
        "</l>",
    ],
    "qwen_coder": ["<function=f>", "</function>", "<parameter=", "</parameter>", "s>", "n>", "l>"],
    "glm": ["f\n", "g", "s", "n", "l", '["</arg_value>"]'],
    "glm_v47": ["f", "s", "l", '["</arg_value>"]'],
    "hy3": ["f", "g", "s", "n", "l", "\n"],
    "apertus": ['{"f": {', "}}", ", "],
    "cohere": ['{"tool_name": "f", "parameters": {', "}}", ", "],
    "seed_oss": ["<function=f>", "</function>", "<parameter=", "</parameter>", "s>", "n>", "l>"],
    "harmony": ["analysis", "final", "commentary", " to=functions.f", "assistant"],
    "muse": [MUSE_F, MUSE_END, " to=self", " to=user", " to=f", *MUSE.parameter, *MUSE.call, 's">'],
    "kimi_k2": [K_F, "functions.f:0", ":"],
    "lfm2": ["f(", *PYTHON],
    "pythonic": ["[f(", "[g(", *PYTHON],
    "granite": [", "],
    "glm4": ["f", "f\n", "g\n", "{}"],
}


def fragments(name: ToolFormat) -> list[str]:
    """What texts of a format are made of: its tags, whole and cut, and what stands between."""
    tags = FORMATS[name].tags
    cut = [tag[: len(tag) // 2] for tag in tags]
    return [*tags, *tags, *cut, *INSIDE.get(name, []), *JSON, "\n", " ", "a", "<", "7"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_cut_never_matters(name: ToolFormat, data: st.DataObject) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(fragments(name)), max_size=12)))
    whole = read(parser_of(name), [text])
    assert read(parser_of(name), list(text)) == whole
    for place in range(len(text)):
        assert read(parser_of(name), [text[:place], text[place:]]) == whole
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]
    assert read(parser_of(name), parts) == whole


@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_is_neither_kept_nor_searched_again(name: ToolFormat) -> None:
    """What a parser holds is bounded, so that each character costs a bounded time."""
    tag = FORMATS[name].tags[0]
    begun = "".join(INSIDE.get(name, ["f"])[:1])
    for begin in ("", f"{tag}{begun}", f'{tag}[{{"name": '):
        for flood in (" ", "{", '"', "<", "a", tag, '{"name": '):
            parser: Any = parser_of(name)
            parser.feed(begin)
            for _ in range(44):
                parser.feed((flood * 400)[:400])
                if name != "hermes":  # whose calls are searched only where they are new
                    assert len(parser._held) <= MAX_WHOLE_CHARS + 400
            parser.finish()


@pytest.mark.parametrize(
    ("name", "begin", "flood"),
    [
        ("llama", '{"name": "f", "parameters": ', '{"a": ['),
        ("deepseek", f"{CALLS_BEGIN}{CALL_BEGIN}f{SEPARATOR}", '{"a": ['),
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": ', '{"a": ['),
        ("minimax", f'{INVOKE}<parameter name="s">', "abc"),
        ("glm", f"{GLM_F}<arg_key>s</arg_key>\n<arg_value>", "abc"),
        ("harmony", TO_F, '{"a": ['),
        ("muse", f'{MUSE_F}<atem:parameter name="s">', "abc"),
        ("kimi_k2", K_F, '{"a": ['),
        ("lfm2", f"{L_F}s='", "abc"),
        ("pythonic", "[f(l=", "[1, "),
        ("granite", '<|tool_call|>[{"name": "f", "arguments": ', '{"a": ['),
        ("glm4", "f\n", '{"a": ['),
    ],
)
def test_arguments_arrive_while_they_are_generated(
    name: ToolFormat, begin: str, flood: str
) -> None:
    parser = parser_of(name)
    parser.feed(begin)
    for _ in range(3):
        pieces = [piece.tool_call for piece in parser.feed(flood)]
        assert any(piece is not None and piece.arguments_json for piece in pieces)


def test_without_tools_a_call_in_a_message_is_text() -> None:
    parser = HarmonyParser(lambda: "x", tools=False)
    assert read(parser, [f"{TO_F}{{}}<|call|>"]) == ("{}", "", [])
    muse = MuseParser(lambda: "x", {}, tools=False)
    assert read(muse, [" to=f<|message|>{}<|eot|>"]) == ("{}", "", [])


def test_a_continued_final_message_goes_on_as_text() -> None:
    for parts in splits("2, 3<|end|>"):
        assert read(HarmonyParser(lambda: "x", continued=True), parts) == ("2, 3", "", [])
    for parts in splits("2, 3<|eot|>"):
        assert read(MuseParser(lambda: "x", {}, continued=True), parts) == ("2, 3", "", [])


VALUES: list[tuple[str, set[str], Any]] = [
    ("7", {"integer"}, 7),
    ("7", {"string", "integer"}, 7),
    ("7", set(), 7),
    ("7.0", {"integer"}, 7.0),
    ("7.5", {"integer"}, "7.5"),
    ("true", {"integer"}, "true"),
    ("None", {"null"}, None),
    ("None", set(), "None"),
    ("NaN", {"number"}, "NaN"),
    ("[1, {}]", {"array"}, [1, {}]),
    ('"quoted"', set(), '"quoted"'),
    ("", {"object"}, ""),
]


@pytest.mark.parametrize(("text", "types", "value"), VALUES)
def test_a_value_has_the_type_that_the_schema_gives_it(
    text: str, types: set[str], value: object
) -> None:
    assert json.loads(typed(text, frozenset(types))) == value


@settings(max_examples=40, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
))  # fmt: skip
def test_any_value_in_json_comes_back_through_every_format(value: object) -> None:
    arguments = json.dumps({"l": [value]}, ensure_ascii=False)
    written: dict[ToolFormat, Callable[[], str]] = {
        "llama": lambda: f'{{"name": "f", "parameters": {arguments}}}',
        "deepseek": lambda: (
            f"{CALL_BEGIN}function{SEPARATOR}f\n```json\n{arguments}\n```{CALL_END}"
        ),
        "mistral": lambda: f'[TOOL_CALLS][{{"name": "f", "arguments": {arguments}}}]',
        "mistral_v13": lambda: f"[TOOL_CALLS]f[ARGS]{arguments}",
        "minimax": lambda: (
            f'{INVOKE}<parameter name="l">{json.dumps([value])}</parameter></invoke>'
        ),
        "dsml": lambda: f'{D_F}{D_P}l" string="false">{json.dumps([value])}{D_END}{DSML.call[1]}',
        "dsml_v4": lambda: (
            f'{V4_F}{D_P}l" string="false">{json.dumps([value])}{D_END}{DSML.call[1]}'
        ),
        "glm_v47": lambda: (
            f"<tool_call>f<arg_key>l</arg_key><arg_value>{json.dumps([value])}</arg_value></tool_call>"
        ),
        "hy3": lambda: f"{H_F}{H_L}{json.dumps([value])}{HY3.parameter[1]}{HY3.call[1]}",
        "harmony": lambda: f"{TO_F}{arguments}<|call|>",
        "muse": lambda: (
            f'{MUSE_F}<atem:parameter name="l">{json.dumps([value])}</atem:parameter>\n{MUSE_END}'
        ),
        "kimi_k2": lambda: f"{K_BEGIN}{K_F}{arguments}<|tool_call_end|>{K_END}",
        "lfm2": lambda: f"{L_F}l={[value]!r})]{L_END}",
        "pythonic": lambda: f"[f(l={python_literal([value])})]",
        "granite": lambda: f'<|tool_call|>[{{"name": "f", "arguments": {arguments}}}]',
        "glm4": lambda: f"f\n{arguments}",
    }
    for name, text in written.items():
        if name in ("harmony", "muse") and "<|" in arguments:
            continue  # which the model cannot write as text
        ((_, function, found),) = read(parser_of(name), [text()])[2]
        assert (function, json.loads(found)) == ("f", {"l": [value]})
