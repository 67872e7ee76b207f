"""The templates of make_jinja_cases.py: expressions, statements, and chat templates written in the style of what model
families ship (own text, not copies). Data, not code: one list, longer than other files may be."""

EXPRESSIONS = r"""
2 * 3 ~ 4
1 + 2 ~ 3
-2**2
2**3**2
-7 // 2
7 % -3
7 / 2
4 / 2
-7 % 3
7.5 // 2
-7.5 // 2
7.5 % -2
2 ** -1
2 ** 0.5
0 ** 0
10 ** 18
1e400
1e-400
1 / 0
1 // 0
1 % 0
1.0 / 0
'a' + 'b'|upper
not true == false
1 == 1.0
true == 1
true + true
1 < 2 < 3
3 > 2 > 2
1 < 2 > 0
1 is true
none
true
[1,'a',1.0]
{'a':none}
1e20
1e15
1e16
123456789.123
0.1 + 0.2
1e-5
0.0001
1e22
5e-324
-0.0
(1,)
()
(1, 2)
[]
{}
{1: 'a', 'b': [1, (2,)]}
u
u is defined
u is none
u|default('d')
u.x
u['x']
u()
u[0]
u + 'a'
'a' + u
u ~ 'x'
u == u2
u == none
u != ''
u < 1
-u
not u
u|length
u|upper
u|list
u|join(',')
u is sequence
u is iterable
u is mapping
u is string
u is number
u is callable
'a' in u
u in [1]
u * 2
messages[0].foo
messages[0]['foo'] is defined
messages[0].foo.bar
messages[9] is defined
messages[9]
messages[-1].role
messages[-3] is defined
messages[0]['role'] ~ messages[0].content
messages['x'] is defined
messages[1].content is none
'abc' is iterable
'abc' is sequence
{'a':1} is sequence
{'a':1} is mapping
none is iterable
1 is number
1.0 is integer
1 is integer
true is integer
true is number
true is boolean
1.5 is float
'x' is string
[] is sequence
[] is mapping
range(3) is sequence
{}.items() is sequence
{}.items() is iterable
range is callable
'x' is callable
3 is odd
4 is even
-3 is odd
9 is divisibleby 3
9 is divisibleby(4)
1 is eq 1
1 is equalto(1.0)
2 is ne 2
2 is gt 1
2 is ge 2
2 is lt 2
2 is le 2
2 is lessthan 3
2 is greaterthan 3
'a' is in ['a']
'a' is in 'abc'
'a' is lower
'A' is upper
'Aa' is upper
'1' is lower
none is sameas none
true is sameas true
1 is sameas true
'tojson' is filter
'nope' is filter
'defined' is test
1 is not defined
u is not defined and true
1 is defined and 'a' is string
1 is nope
1|nope
none|default('b')
''|default('b', true)
''|default('b')
none|default('b', true)
none|default('b', boolean=true)
u|default
none|length
1|length
{'items': 3}['items']
{'items': 3}.items is callable
{'a': 3}['items'] is defined
{'a': 3}.keys is defined
{'a': 1}.nope is defined
'2' * 3
3 * 'ab'
'a' * -1
[0] * 2
2 * (1, 2)
'a' * 'b'
[1] + [2]
(1,) + (2,)
[1] + (2,)
'a' + 1
1 + 'a'
none + 1
[1] - [1]
1 < 'a'
'a' < 'b'
[1, 2] < [1, 3]
(1, 2) < (1,)
{} < {}
none < 1
1 == 'a'
[1, [2.0]] == [1.0, [2]]
{'a': 1, 'b': 2} == {'b': 2, 'a': 1}
{'a': 1} == {'a': 2}
(1,) == [1]
messages[0] == messages[-1]
messages[0] == messages[0]
1 in [1.0]
'z' not in ['a']
'k' in {'k': none}
'ab' in 'cabd'
1 in 'a'
1 in 1
[] in {}
'' in 'abc'
3 in range(5)
'a' in {'a': 1}.keys()
('a', 1) in {'a': 1}.items()
'' or 'dflt'
none or 0
'a' and 'b'
0 and u.x
1 or u.x
'x' if false
'x' if true else 'y'
'x' if false else 'y' if false else 'z'
('x' if false) is defined
'abc'[0]
'abc'[-1]
'abc'[5] is defined
'abc'[::-1]
'hello'[1:-1:2]
'hello'[-3:]
'hello'[:2]
'hello'[10:]
'hello'[3:1]
'hello'[::0]
[1,2,3][-2:]
[1,2,3][:-1]
[1,2,3][::-1]
[1,2,3][5:1:-2]
(1,2,3)[1:]
range(10)[2:8:3]|list
range(10)[-1]
range(5)
range(2, 8, 3)
range(5, 0, -2)|list
range(0)|list
range(100000)|length
range(100001)
range(1, 2, 0)
range('a')
'日本語'[1]
'日本語'[::-1]
'日本語'[1:]
'日本語x'[-2:]
'日本'|length
messages[::-1]|map(attribute='role')|list
messages[1:]|length
1[0] is defined
none['a'] is defined
none.a
none.a.b
'a'.b is defined
1.5.b
'a b c'.split(' ')[-1]
' a  b '.split()
' a  b c '.split(none, 1)
'a,b,c'.split(',', 1)
'a,b,c'.rsplit(',', 1)
' a b  c '.rsplit(none, 1)
'a,b'.split(',', maxsplit=0)
''.split()
''.split(',')
'a'.split('')
'a'.split(1)
'a</think>b'.split('</think>')[-1].lstrip('\n')
'\n\nx\n'.strip('\n')
'xxhixx'.strip('x')
'abcab'.strip('ba')
' \t\n x \u00a0'.strip()
'  x '.rstrip()
'  x '.lstrip()
'éxé'.strip('é')
'abc'.startswith('a')
'abc'.startswith(('x', 'a'))
'abc'.startswith('b', 1)
'abc'.endswith('bc')
'abc'.endswith(1)
'abc'.find('c')
'日本語'.find('語')
'abc'.find('z')
'abcabc'.rfind('b')
'abc'.index('z')
'banana'.count('a')
'banana'.count('ana')
'abc'.count('')
'aXbX'.replace('X', '-')
'aXbX'.replace('X', '-', 1)
'abc'.replace('', '.')
'abc'.replace('', '.', 2)
'abc'.upper()
'ÀÉß'.upper()
'straße'.title()
"they're bill's".title()
'hELLO wORLD'.capitalize()
'ΑΣ ΣΑΣ'.lower()
'ǆ'.title()
'ﬁx'.upper()
'İ'.lower()
'Hello'.swapcase()
'Straße'.casefold()
'a\nb\r\nc\u2028d'.splitlines()
'a\nb\n'.splitlines(true)
''.splitlines()
'prefix-x'.removeprefix('prefix-')
'x.txt'.removesuffix('.txt')
'x.txt'.removesuffix('')
'123'.isdigit()
'12a'.isdigit()
''.isdigit()
'²'.isdigit()
'²'.isdecimal()
'½'.isnumeric()
'abc'.isalpha()
'ab1'.isalnum()
'abc'.islower()
'ABC'.isupper()
'A1'.isupper()
' \n'.isspace()
'Ab Cd'.istitle()
''.isascii()
'é'.isascii()
'x'.isprintable()
'a-b-c'.partition('-')
'abc'.partition('-')
'a-b-c'.rpartition('-')
'5'.zfill(3)
'-5'.zfill(4)
'ab'.center(5)
'abc'.center(6, '*')
'ab'.ljust(4, '.')
'ab'.rjust(4)
'a\tb'.expandtabs(4)
', '.join(['a', 'b'])
','.join([1])
'-'.join('abc')
'{}:{}'.format(1,'z')
'{1}{0}'.format('a','b')
'{a} {b[x]} {c[0]}'.format(a=1, b={'x': 2}, c=[3])
'{:>5}|{:<5}|{:^5}|{:*^7}'.format('a','b','c','d')
'{:05d} {:+d} {:,} {:x} {:#x} {:b} {:o} {:X}'.format(42, 42, 1234567, 255, 255, 5, 8, 255)
'{:.2f} {:8.3f} {:e} {:g} {:%} {:.1%} {:,.2f}'.format(3.14159, 2.5, 12345.678, 0.0001, 0.5, 0.123, 1234567.891)
'{!r} {!s}'.format('a', 'b')
'{{}} {}'.format(1)
'{:.2}'.format('abc')
'{:.3}'.format(2.0)
'{}'.format()
'{x}'.format()
'{:d}'.format('a')
'{} {}'.format(none, true)
'{:5}|{:5}'.format(1, 'a')
'{'.format()
'}'.format()
'%s-%d' % ('a', 3)
'%05.2f' % 1.5
'%5s|%-5s|' % ('a', 'b')
'%x %X %o %#x %e %g %G' % (255, 255, 8, 255, 12345.678, 1e-10, 1e20)
'%+d % d %03d' % (5, 5, 7)
'%%' % ()
'%s' % none
'%r %s' % ('a', [1])
'%(a)s %(b)d' % {'a': 'x', 'b': 2}
'%s' % (1, 2)
'%s %s' % 1
'%d' % 'a'
'%d' % 3.99
'%i' % true
'%.3s|' % 'abcdef'
'%c%c' % (65, 'b')
'%*d' % (5, 42)
'%z' % 1
'%' % ()
'%s-%d'|format('a', 3)
'%(x)s'|format(x=1)
'a' 'b'
'it\'s'
['it\'s','b"c']
['a\n\t\\\x00\x7f\u200b\u00e9\U0001f600']
"a\
b"
'\d\w'
'\x41\u0042\103'
1_000
0x1F + 0o17 + 0b11
1.5e3
1e3
00
.5
'é'|upper
'straße'|title
'hello-world (foo) [bar]'|title
"they're"|title
'ab cd'|capitalize
'HELLO'|lower
' x '|trim
'xxaxx'|trim('x')
1|trim
none|trim
'Hello'|replace('l','L',1)
'Hello'|replace('l','L')
'aaa'|replace('a','b',count=2)
1|replace('1','2')
'a\nb\n\nc'|indent(2)
'a\nb\n\nc'|indent(2, true)
'a\nb\n\nc'|indent(2, blank=true)
'a\nb\n'|indent
'a\nb'|indent('> ')
'a\nb'|indent(width=1, first=true)
''|indent(2, true)
{'b':1,'a':2}|dictsort
{'b':1,'a':2}|dictsort(by='value')
{'b':1,'A':2}|dictsort
{'b':1,'A':2}|dictsort(true)
{'b':1,'a':2}|dictsort(reverse=true)
{'b':1,'a':2}|items|list
{'b':1,'a':2}.items()
{'b':1,'a':2}.keys()
{'b':1,'a':2}.values()|list
{'b':1,'a':2}|list
{'b':1,'a':2}|first
{'a':1}.items()[0] is defined
{'a':1}.items()|length
none|items|list
u|items|list
[3,1,2]|sort
['b','A','a']|sort
['b','A','a']|sort(case_sensitive=true)
[3,1,2]|sort(reverse=true)
[{'a':2},{'a':1}]|sort(attribute='a')
[{'a':2,'b':1},{'a':1,'b':2},{'a':1,'b':1}]|sort(attribute='a,b')
[1,'a']|sort
[{'a':1},{'b':2}]|selectattr('a','defined')|list
[{'t':'x','v':1},{'t':'y','v':2}]|selectattr('t','equalto','y')|map(attribute='v')|first
[{'a':{'b':1}},{'a':{'b':0}}]|selectattr('a.b')|list
[{'a':1},{'a':2}]|rejectattr('a','eq',1)|list
[0,1,2]|select|list
[0,1,2]|reject|list
[1,2,3]|select('odd')|list
[1,2,3]|select('gt', 1)|list
[1,2,3]|reject('divisibleby', 2)|list
[1]|select('nope')|list
[1,2]|select('odd') is iterable
'yes' if [1,2]|select('gt', 5) else 'no'
[1,2]|select('odd')|length
[1,2,3]|map('string')|join('+')
['a','b']|map('upper')|list
['a',none]|map('default', 'x', true)|list
[{'a':1},{}]|map(attribute='a', default='d')|list
[{'a':1},{}]|map(attribute='a')|list
[[1,2],[3,4]]|map(attribute=0)|list
[[1,2],[3,4]]|map('last')|list
[1]|map|list
[1]|map('nope')|list
[1,1,2]|unique|list
['a','A','b']|unique|list
['a','A','b']|unique(true)|list
[{'a':1},{'a':1}]|unique(attribute='a')|list
[1,2]|sum
[]|sum
[1,2]|sum(start=10)
[{'a':1},{'a':2}]|sum(attribute='a')
[1.5,2]|sum
'x,y'|list
['a','b']|join
[1,none,'x']|join(', ')
[{'a':1},{'a':2}]|join('-', attribute='a')
'abc'|join('.')
[1,2,3]|first
[]|first
[1,2,3]|last
[]|last
'abc'|last
[]|first is defined
[3,1,2]|min
[3,1,2]|max
['b','A']|min
[]|max
[{'a':2},{'a':1}]|min(attribute='a')
[1,2,3]|reverse|list
'abc'|reverse
'日本'|reverse
range(3)|reverse|list
[1,2,3,4,5]|batch(2)|list
[1,2,3,4,5]|batch(2,'x')|list
[1,2,3,4,5]|slice(2)|list
[1,2,3,4,5]|slice(3,'x')|list
[{'a':1,'b':2},{'a':2,'b':3},{'a':1,'b':4}]|groupby('a')
[{'a':'X'},{'a':'x'},{}]|groupby('a', default='x')
'3'|int + 1
'q'|int
'q'|int(5)
'3.5'|int
'3.5'|float
'q'|float
'q'|float(1.5)
3.7|int
-3.7|int
true|int
none|int
'0x1f'|int(base=16)
'ff'|int(0, 16)
' 42 '|int
'1_000'|int
'1e3'|float
'inf'|float
2.5|round
3.5|round
2.675|round(2)
2|round
2.1|round(method='ceil')
2.9|round(0, 'floor')
1234.5|round(-2)
'a'|round
-3|abs
-3.5|abs
'a'|abs
3|string ~ 'x'
none|string
[1,'a']|string
1.0|string
'a <b> & "c"'|e
'a <b>'|safe
('a'|safe) + '<'
'<' + ('a'|safe)
('a'|safe) ~ '<'
['a'|safe]
('<'|safe)|upper
'<'|e|e
'<'|e|length
'x'|escape + '<'
'<p>'|forceescape
'one two  three'|wordcount
'foo bar baz qux'|truncate(9)
'foo bar baz qux'|truncate(9, true)
'foo bar baz qux'|truncate(11)
'foo bar baz qux'|truncate(11, false, '...', 0)
'a b/c?é'|urlencode
'ab'|center(6) ~ '|'
{'a':1}|attr('a') is defined
{'a':1}|attr('keys') is defined
messages|tojson
messages[1].tool_calls[0].function.arguments|tojson
{'a':[1,2],'b':{}}|tojson(indent=2)
[[],{},[[]]]|tojson(indent=4)
[1.0, 1e-7, 'q"\\/', none, true, '\u2028']|tojson
'é😀\x01\x7f\b\f'|tojson
'é😀'|tojson(ensure_ascii=true)
{'b':1,'a':2}|tojson(sort_keys=true)
{'b':1,'a':[1,2]}|tojson(separators=(',', ':'))
{'b':1,'a':[1,2]}|tojson(separators=(',', ':'), indent=1)
{1:2, none:3, true:4, 1.5:5}|tojson
[(1,2)]|tojson
[1]|tojson(indent='--')
[1]|tojson(indent=0)
u|tojson
range|tojson
{'a':1}.items()|tojson
1e400|tojson
'<>&\''|tojson
dict(a=1,b=2)
dict({'a':1}, b=2)
dict([('a', 1), ['b', 2]])
dict([1])
{'a':1}.get('z')
{'a':1}.get('z', 5)
{'a':1}.get('a')
{'a':1}.get([])
{'a':1}.keys()|list
{'a':1,'a':2}
{1:'a', 1.0:'b', true:'c'}
{[]: 1}
{(1,2): 3}[(1,2)]
{(1,2): 3}[1,2]
{'a':1}.copy()
{'a':1}.pop('a')
{'a':1}.update({}) 
{'a':1}.pop is defined
[1].append(2)
[1,2,1].count(1)
[1,2].index(2)
[1,2].index(3)
''.__class__
''.__class__.__mro__
messages.__len__()
range.__globals__
cycler.__init__
namespace(a=1).a
namespace(a=1)['a']
namespace(a=1).b is defined
namespace(a=1)
cycler('a','b').next()
cycler().next()
joiner(',')() ~ 'x'
raise_exception('no')
strftime_now('%d %b %Y')
loop
caller
(messages|length > 1) and messages[0].role == 'user'
messages|selectattr('role','equalto','user')|list|length
messages[0].content|trim|length
messages|map(attribute='role')|join(',')|upper
'a'.upper().lower()
'a b'.split()[0].upper()
[1,2][0]|string
-1|abs
-(1|abs)
+1
+'a'
-'a'
1 - -1
1 --1
not 1 in [1]
not (1 in [2])
1 not in [2] and true
1 if 1 in [1] else 2
[i for i in x]
{'a' 1}
1 +
'abc
)
(1
1 2
a = 1
true.x is defined
True and not False
None is none
foo.bar.baz is defined
messages[0].role.upper()
messages[0]['role'][0]
[1, 2,]
(1, 2,)
{'a': 1,}
[,]
'a' is string is string
'x' is not string
1 is in([1,2])
[[1,2],[3]]|sum(start=[])
'%s' % u
[u]
(u,)|length
{'a': u}.a is defined
'a'.join(u)
u.append(1)
range(3)|map('string')|list
[1,2]|list == [1,2]
range(3) == range(0,3)
'a' ~ 1 ~ none ~ true ~ 1.5 ~ [1] ~ u
""".strip("\n").replace("\\\nb", "\0").split("\n")
EXPRESSIONS = [e.replace("\0", "\\\nb") for e in EXPRESSIONS]

STATEMENTS = [
    "{% set x=1 %}{% for i in [1,2] %}{{x}}{% set x=x+1 %}{{x}} {% endfor %}{{x}}",
    "{% if true %}{% set y=5 %}{% endif %}{{y}}",
    "{% for a in u %}x{% else %}empty{% endfor %}",
    "{% for a in none %}x{% endfor %}",
    "{% for a in 1 %}x{% endfor %}",
    "  {% if true %}\n  x\n  {% endif %}\ny\n",
    "a {# c #}\nb",
    "a\n  {# c #}\nb",
    "a {#- c -#} b",
    "{{ 'x' }}\ny",
    "x  {%- if true -%}  y  {%- endif %}  z",
    "{%+ if true %} a{%+ endif %}b",
    "  {{ 'v' }}",
    "{% if true +%}\nx{% endif %}",
    "a\n{%- if true %}\nb\n{%- endif %}\nc",
    "a\r\n{% if true %}\r\nb\rc\r\n{% endif %}\r\nd\r\n",
    "a\n\n",
    "a\n",
    "\n",
    "",
    "   \n  {% if true %}   \n x {% endif %}  ",
    "x {% if true %}y{% endif %}\n\nz",
    "\t {% set a = 1 %}\t\n{{ a }}",
    "{{- ' a ' -}}  b  {{- 'c' }}  d",
    "a {{+ 'b' }}",
    "{{ '}}' }}{{ \"%}\" }}{{ {'a': {'b': 1}}['a'] }}",
    "{{ {'a': {'b': 1}}}}",
    "{#- x -#}  a",
    "a { b } % {c {{'{'}} #}",
    "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}",
    "{% set x = {} %}{% set x.a = 1 %}",
    "{% set ns = namespace() %}{% set ns.b = 2 %}{{ ns.b }}{{ ns.c is defined }}",
    "{% macro m(a, b=2) %}{{a}}-{{b}}{% endmacro %}{{ m(1) }} {{ m(1,b=3) }} {{ m() }}",
    "{% macro m(a) %}{{a}}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{a}}{% endmacro %}{{ m(b=2) }}",
    "{% macro m(a) %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, x=4) }}",
    "{% macro m(a, b=a) %}{{ b }}{% endmacro %}{{ m(1) }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 1 %}{{ m() }}{% for x in [5] %}{{ m() }}{% endfor %}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}x{{ 1 }}{% endcall %}",
    "{% macro m() %}[{{ caller(1) }}{{ caller(2) }}]{% endmacro %}{% call(i) m() %}x{{ i }}{% endcall %}",
    "{% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %}",
    "{% macro m() %}{{ caller() }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{% set q = 1 %}{% endmacro %}{{ m() }}{{ q is defined }}",
    "{% macro m() %} a {% endmacro %}{{ m()|trim }}|{{ m.name }}",
    "{% for i in range(5) if i % 2 == 0 %}{{ loop.index }}/{{ loop.length }}{{ '' if loop.last else ',' }}{% endfor %}",
    "{% for i in range(10) %}{% if i==1 %}{% continue %}{% endif %}{% if i==3 %}{% break %}{% endif %}{{i}}{% endfor %}",
    "{% for i in range(3) %}{% break %}{% else %}e{% endfor %}",
    "{% for i in [] %}{% else %}e{% endfor %}",
    "{% for i in [1,2] if i > 5 %}x{% else %}e{% endfor %}",
    "{% break %}",
    "{% for i in range(3) %}{% continue %}{% else %}e{% endfor %}",
    "{% for m in messages[::-1] %}{{ m.role }} {% endfor %}",
    "{% for k, v in {'a':1,'b':2}.items() %}{{ k }}={{ v }}{{ ', ' if not loop.last }}{% endfor %}",
    "{% for k, v in {'a':1}|items %}{{ k }}{{ v }}{% endfor %}",
    "{% for k in {'a':1,'b':2} %}{{ k }}{% endfor %}",
    "{% for a, b in [[1,2],[3,4]] %}{{ a }}{{ b }};{% endfor %}",
    "{% for a, b in [[1,2,3]] %}{% endfor %}",
    "{% for a, b in [[1]] %}{% endfor %}",
    "{% for (a, b), c in [[[1,2],3]] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for c in 'aé日' %}{{ c }}.{% endfor %}",
    "{% for r in [[1,2],[3]] %}{% for c in r %}{{ loop.index0 }}{{ c }};{% endfor %}{% endfor %}",
    "{% for i in [1,2,3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}|{% endfor %}",
    "{% for i in [1,2,3] %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }}|{% endfor %}",
    "{% for i in [1,2] %}{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% endfor %}",
    "{% for i in [1,1,2] %}{{ loop.changed(i) }}{{ loop.cycle('a','b') }}{% endfor %}",
    "{% for x in [[1,[2,[3]]]] recursive %}{% if x is iterable %}({{ loop(x) }}){% else %}{{ x }}@{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for x in [1] %}{{ loop([2]) }}{% endfor %}",
    "{% for x in [1,2]|map('string') %}{{ loop.length }}{{ x }}{% endfor %}",
    "{% set g = [1,2]|map('string') %}{% for x in g %}{{ x }}{% endfor %}{% for x in g %}{{ x }}{% endfor %}{{ g|list }}",
    "{% for i in [1,2] %}{% set loop_i = loop.index %}{% for j in [1] %}{{ loop_i }}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for i in [1,2] %}{% else %}{{ loop is defined }}{% endfor %}",
    "{% for i in [3] %}{{ i }}{% endfor %}{{ i is defined }}",
    "{% set i = 7 %}{% for i in [3] %}{{ i }}{% endfor %}{{ i }}",
    "{% for i in [1,2,3] if i != 2 %}{{ i }}{{ loop.previtem }}{% endfor %}",
    "{% set ns = namespace(last=0) %}{% for i in [1,1,2,2] if i != ns.last %}{{ i }}{% set ns.last = i %}{% endfor %}",
    "{% set x %}hi {{ 1 }}{% endset %}[{{ x }}]",
    "{% set x | upper %}hi {{ 1 }}{% endset %}[{{ x }}]",
    "{% set x | replace('h','j') | upper %}hi{% endset %}[{{ x }}]",
    "{% set x %}{% set y = 1 %}{% endset %}{{ y is defined }}",
    "{% set ns = namespace() %}{% set ns.x %}blk{% endset %}{{ ns.x }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set a, b = [1, 2] %}{{ a }}{{ b }}",
    "{% set a, b = 1 %}",
    "{% set a = 1, 2 %}{{ a }}",
    "{% set (a, b) = 'xy' %}{{ a }}{{ b }}",
    "{% set 1 = 2 %}",
    "{% set true = 2 %}",
    "{% set l=[] %}{% set _ = l.append(1) %}",
    "{% filter upper %}a{{ 'b' }}{% endfilter %}",
    "{% filter replace('a','b')|upper %}aX{% endfilter %}",
    "{% generation %}g{{ 1 }}{% endgeneration %}",
    "{% for i in [1] %}{% generation %}{{ loop.index }}{% set z = 1 %}{% endgeneration %}{{ z is defined }}{% endfor %}",
    "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}",
    "{% if tools is defined and tools %}T{% elif tools is none %}N{% endif %}",
    "{% if 0 %}a{% elif 0 %}b{% else %}c{% endif %}",
    "{% if 1 %}a{% elif u.x %}b{% else %}c{% endif %}",
    "{% if u %}a{% endif %}b",
    "{% if [] or {} or '' or 0 or none %}a{% else %}b{% endif %}",
    "{% raw %}{{ x }}{% endraw %}",
    "a\n  {% raw %}\n  {{ x }}\n  {% endraw %}\nb",
    "a {%- raw -%}  {% x %}  {%- endraw -%}  b",
    "{% set m = messages[0] %}{% if m is mapping and m.content is string %}ok{% endif %}",
    "{% set c = cycler('a','b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}",
    "{% set j = joiner('|') %}{% for i in [1,2,3] %}{{ j() }}{{ i }}{% endfor %}",
    "{% for g in [{'a':1},{'a':2},{'a':1}]|groupby('a') %}{{ g.grouper }}:{{ g.list|length }};{% endfor %}",
    "{% for k, v in [{'a':1},{'a':2}]|groupby('a') %}{{ k }}{{ v }}{% endfor %}",
    "{% if 1|nope %}{% endif %}",
    "{% if false %}{{ 1|nope }}{% endif %}ok",
    "{% if false %}{{ 1 is nope }}{% endif %}ok",
    "{{ 1|nope if false else 2 }}",
    "{% unknown %}",
    "{% if %}{% endif %}",
    "{% if 1 %}",
    "{% endif %}",
    "{% for %}{% endfor %}",
    "{% for x in %}{% endfor %}",
    "{{ }}",
    "{{ 1",
    "{% if 1",
    "{# never closed",
    "{% raw %} never closed",
    "{% macro m( %}{% endmacro %}",
    "{% macro m(a=1, b) %}{% endmacro %}",
    "{% set x = %}",
    "{{ 1 }} }} %} #}",
    "{{ f(a=1, 2) }}",
    "{% set d = {'x': [1,2]} %}{{ d.x[1] }}{{ d['x'][0] }}{{ d.x.1 }}",
    "{% set f = 'a-b'.split %}{{ f('-') }}",
    "{% macro m(x, y) %}{{ x }}{{ y }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'x': 3, 'y': 4}) }}{{ m(*[1], **{'y': 2}) }}",
    "{% set s = namespace(t='') %}{% for m in messages %}{% set s.t = s.t ~ m.role ~ ';' %}{% endfor %}{{ s.t }}",
    "{% for m in messages %}{% if loop.first and m.role == 'user' %}F{% endif %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{% endfor %}",
    "{% set x = 5 -%}\n\n  a",
    "line1\n  {%- set x = 1 %}\nline2\n{%- set y = 2 -%}\n  line3",
    "{%- for i in range(2) %}\n  - {{ i }}\n{%- endfor %}\nend",
    "{% for i in range(2) -%}\n  - {{ i }}\n{% endfor -%}\nend",
    "<{% if true %}>\n<{% endif %}>",
    "{% if true %}\n\n{% endif %}x",
    "{% set x = 'a\nb' %}\n{{ x }}\n{{ x|length }}",
    "{% do 1 %}",
    "{% include 'x' %}",
    "{% set ns = namespace(a=1) %}{{ ns }}",
]

LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The system text comes first, wherever it is. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_text = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_text = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" }}
{{- system_text }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("One tool call at once, please!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif (message.tool_calls is defined and message.tool_calls is not none) %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call ids are 9 characters") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- else %}
                {{- "]" + eos_token }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token}}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}
            {%- set content = message.content.content %}
        {%- else %}
            {%- set content = message.content %}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("unknown role") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("roles must alternate user/assistant") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) %}{%- for message in messages %}{%- if message['role'] == 'system' %}{%- if ns.is_first_sp %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first_sp = false %}{%- else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{%- endif %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}{%- for message in messages %}{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' in message %}{%- set ns.is_tool = false -%}{%- for tool in message['tool_calls'] %}{%- if loop.first %}{%- if message['content'] is none %}{{'<｜Assistant｜><｜calls｜>' + tool['type'] + '<｜sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments']|tojson + '\\n' + '```'}}{%- else %}{{'<｜Assistant｜>' + message['content'] + '<｜calls｜>'}}{%- endif %}{%- else %}{{'\\n' + '<｜call｜>' + tool['function']['name']}}{%- endif %}{%- endfor %}{{'<｜end｜>'}}{%- endif %}{%- if message['role'] == 'assistant' and 'tool_calls' not in message %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}{%- endif %}{%- if message['role'] == 'tool' %}{%- if ns.is_tool %}{{'\\n<｜out｜>' + message['content'] + '<｜/out｜>'}}{%- else %}{%- set ns.is_tool = true -%}{{'<｜outs｜><｜out｜>' + message['content'] + '<｜/out｜>'}}{%- endif %}{%- endif %}{%- endfor -%}{% if ns.is_tool %}{{'<｜/outs｜>'}}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\\n'}}{% endif %}"""

PHI = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{% generation %}{{'<|assistant|>
' + (message['content'] or '') + '<|end|>
'}}{% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

HARMONY = """{%- macro render_type(spec, required) -%}
    {%- if spec.type == "array" -%}
        {%- if spec['items'] -%}
            {{- render_type(spec['items'], required) + "[]" }}
        {%- else -%}
            {{- "any[]" }}
        {%- endif -%}
        {%- if spec.nullable -%}
            {{- " | null" }}
        {%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and spec.type is not mapping and spec.type[0] is defined -%}
        {{- spec.type | join(" | ") }}
    {%- elif spec.type == "string" -%}
        {%- if spec.enum -%}
            {{- '"' + spec.enum|join('" | "') + '"' -}}
        {%- else -%}
            {{- "string" }}
        {%- endif -%}
    {%- elif spec.type == "object" -%}
        {%- if spec.properties -%}
            {{- "{\\n" }}
            {%- for name, sub in spec.properties.items() -%}
                {{- name -}}
                {%- if name not in (spec.required or []) -%}
                    {{- "?" }}
                {%- endif -%}
                {{- ": " }}
                {{ render_type(sub, spec.required or []) }}
                {%- if not loop.last -%}
                    {{-", " }}
                {%- endif -%}
            {%- endfor -%}
            {{- "}" }}
        {%- else -%}
            {{- "object" }}
        {%- endif -%}
    {%- else -%}
        {{- spec.type or "any" }}
    {%- endif -%}
{%- endmacro -%}
{%- macro render_tools(tools) -%}
    {{- "namespace functions {\\n\\n" }}
    {%- for tool in tools %}
        {%- set tool = tool.function %}
        {{- "// " + tool.description + "\\n" }}
        {{- "type "+ tool.name + " = " }}
        {%- if tool.parameters and tool.parameters.properties %}
            {{- "(_: " + render_type(tool.parameters, []) + ") => any;\\n\\n" }}
        {%- else %}
            {{- "() => any;\\n\\n" }}
        {%- endif %}
    {%- endfor %}
    {{- "} // namespace functions" }}
{%- endmacro -%}
{{- "<|start|>system<|message|>Reasoning: " + (reasoning_effort or "medium") + "<|end|>" }}
{%- if tools -%}
    {{- "<|start|>developer<|message|># Tools\\n\\n" + render_tools(tools) + "<|end|>" }}
{%- endif -%}
{%- set last_call = namespace(name=none) %}
{%- for message in messages -%}
    {%- if message.role == "assistant" -%}
        {%- if "tool_calls" in message -%}
            {%- set future = namespace(found=false) %}
            {%- for later in loop.nextitem and messages[loop.index:] %}
                {%- if later.role == 'assistant' and "tool_calls" not in later %}
                    {%- set future.found = true %}
                {%- endif %}
            {%- endfor %}
            {%- set call = message.tool_calls[0].function %}
            {%- if message.thinking and not future.found %}
                {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}
            {%- endif %}
            {{- "<|start|>assistant to=functions." ~ call.name ~ "<|message|>" }}
            {{- call.arguments|tojson ~ "<|call|>" }}
            {%- set last_call.name = call.name %}
        {%- else %}
            {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
            {%- set last_call.name = none %}
        {%- endif %}
    {%- elif message.role == "tool" -%}
        {%- if last_call.name is none %}
            {{- raise_exception("a tool result without a call") }}
        {%- endif %}
        {{- "<|start|>functions." + last_call.name + " to=assistant<|message|>" + message.content|tojson + "<|end|>" }}
    {%- elif message.role == "user" -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}
"""


def chat_cases():
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    tools = [
        {"type": "function", "function": {"name": "weather", "description": "Weather of a \"place\"", "parameters": {
            "type": "object", "required": ["city"], "properties": {
                "city": {"type": "string", "description": "größe"}, "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "array", "items": {"type": "integer"}}, "opt": {"type": ["string", "null"]},
                "deep": {"type": "object", "properties": {"a": {"type": "number"}}}}}}},
        {"type": "function", "function": {"name": "now", "description": "The time", "parameters": {}}},
    ]
    user, answer = {"role": "user", "content": " Hi there\n"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello 😀"}
    system = {"role": "system", "content": "Be brief. "}
    call = {"role": "assistant", "content": None, "thinking": "let me see", "tool_calls": [
        {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich", "n": 1.0}}}]}
    result = {"role": "tool", "content": '{"t": 21}', "tool_call_id": "abcdefghi"}
    two = {"role": "assistant", "content": "", "tool_calls": call["tool_calls"] * 2}
    dialogs = [
        [user], [system, user], [user, answer, user], [system, user, answer, user], [user, call, result],
        [user, call, result, answer], [user, two, result, result, answer, user], [answer], [user, user],
        [{"role": "user", "content": [{"type": "text", "text": "look "}, {"type": "image"}]}], [],
    ]
    out = []
    named = dict(llama=LLAMA, qwen=QWEN, mistral=MISTRAL, gemma=GEMMA, deepseek=DEEPSEEK, phi=PHI, harmony=HARMONY)
    for name, template in named.items():
        for i, messages in enumerate(dialogs):
            base = {"messages": messages, "tools": None, "add_generation_prompt": i % 3 != 2, **tokens}
            out.append((name, template, base))
            if name in ("llama", "qwen", "mistral", "harmony") and i in (1, 4, 6):
                out.append((name, template, {**base, "tools": tools}))
        out.append((name, template, {"messages": [user], "tools": None, "add_generation_prompt": True, "enable_thinking": False,
                               "builtin_tools": ["brave", "code_interpreter"], "date_string": "1 Jan 2030", **tokens}))
    return out
