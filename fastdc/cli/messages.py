"""Errors of the library as a user of a command line reads them: options as typed, in one line.

The library names its arguments ("num_steps must be ..."), since most of its users write Python. A command's user typed
``--num-steps``, or ``-o num_steps=...`` for an option of a rule.
"""

import re

import click

# Arguments whose option has another name.
_ALIASES = {
    "class_names": "classes",
    "gain": "tolerance",
    "loss": "tolerance",
    "noise": "sigma",
    "stop": "max",
    "bundle": "model",
}

# Ways out that a message may name, of options that not every command has.
_WAYS_OUT = {
    "skip_bad": r"; --skip-bad \(skip_bad\) leaves (?:it|them) out",
    "max_pixels": r": raise --max-pixels \(max_pixels\)",
}

# What follows an argument's name at the beginning of a message.
_SAYS = r"(?= (?:of the \w+ )?(?:must|cannot|lies?|needs?|has|is|are|comes?|as a fraction|=|\(|draws come)(?: |$|\())"


# Text in quotes, which is the user's own. An apostrophe begins none.
_QUOTED = r"""(?<![\w])(?:'[^']*'|"[^"]*")"""

# What is no path and no part of one: a word after a space or a bracket, and a value without a separator or a suffix.
_WORD_BEGINS = r"(?<![^\s(])"
_PLAIN_VALUE = r"(?=[-\w(\[])(?!\S*[/\\])(?!\S*\.[A-Za-z]\w*)"

# What Python users type: of an argument, its value if that is a pair of numbers or True.
_PYTHON = r"(?:\((?P<pair>[-\d.e+]+, [-\d.e+]+)\)|(?P<flag>True\b))?"


def as_typed(message: str, command: click.Command | None) -> str:
    """A message of the library in one line, with a command's options in place of arguments.

    Args:
        message: The message.
        command: The command that ran; None: only the line is made.

    Returns:
        The line: "n0 must be ..., got 0" becomes "--n0 must be ..., got 0", and "rule paired: alpha must ..." becomes
        "--rule paired: -o alpha must ...".
    """
    line = "".join(char if char.isprintable() else " " for char in message)
    typed = _typed(command)
    if not typed:
        return line
    word = "|".join(sorted(map(re.escape, typed), key=len, reverse=True))

    def option(match: "re.Match[str]") -> str:
        name = match["name"]
        return match[0] if name is None else match[0].replace(name, typed[name], 1)

    def given(match: "re.Match[str]") -> str:
        if match["name"] is None:
            return match[0]
        option = typed[match["name"]]
        return option if match["flag"] else f"{option} {(match['pair'] or '').replace(',', '')}"

    for name, way in _WAYS_OUT.items():
        line = line if name in typed else re.sub(way, "", line)
    if "rule" in typed:
        line = re.sub(r"^((?:each of )?)rule (\w+): (\w+)(?= )", r"\1--rule \2: -o \3", line)
        line = re.sub(r"^(rule \w+ with )(?=compat=)", r"\1-o ", line)
        if re.match(r"rule \w+ needs \w+=\.\.\.", line):
            line = re.sub(r"\b(\w+)=(?=\.\.\.|\()", r"-o \1=", line)
            line = re.sub(r"=\((\d+), (\d+)\)", r"=\1,\2", line)
    line = re.sub(rf"^(?:each of )?(?P<name>{word}){_SAYS}", option, line)
    if command is not None and command.name == "train":
        line = line.replace("shape=(channels, height, width)", "--size PIXELS and --channels 1 or 3")
    if command is not None and command.name == "export":  # which checks defaults as a loader will
        line = re.sub(rf"^.*?: defaults\.(?P<name>{word})(?= must)", lambda m: typed[m["name"]], line)
    line = re.sub(r"^(?P<name>rule|method|backend|compat|decision|order)(?= \w)", lambda m: typed.get(m[0], m[0]), line)
    line = re.sub(rf"{_QUOTED}|{_WORD_BEGINS}(?:expected no|got) (?P<name>{word})(?= ['\w])", option, line)
    line = re.sub(rf"{_QUOTED}|{_WORD_BEGINS}given with (?P<name>{word})\b", option, line)
    line = _once(line, typed, word)
    return re.sub(rf"{_QUOTED}|{_WORD_BEGINS}(?P<name>{word})={_PLAIN_VALUE}{_PYTHON}", given, line)


def _once(line: str, typed: dict[str, str], word: str) -> str:
    """A message that names an option and its argument, with the option alone; without None, which nobody can type.

    "--window 0 1 (window=(0, 1))" becomes "--window 0 1", and "overwrite (--overwrite)" becomes "--overwrite".
    """

    def once(match: "re.Match[str]") -> str:
        return match["said"] if typed[match["name"]] == match["option"] else match[0]

    said, value = r"(?P<option>--[-a-z]+)(?: [-\w.+]+)*", r"(?:=(?:\(.*?\)|\S*?))?"
    line = re.sub(rf"(?P<said>{said}) \((?P<name>{word}){value}\)", once, line)
    line = re.sub(rf"{_WORD_BEGINS}(?P<name>{word}) \((?P<said>(?P<option>--[-a-z]+))\)", once, line)
    return re.sub(r"^(--[-a-z]+ must [^'\"]*?) or None(?=,)", r"\1", line)


def _typed(command: click.Command | None) -> dict[str, str]:
    """The options of a command as typed, by the names of the library's arguments."""
    found: dict[str, str] = {}
    for parameter in () if command is None else command.params:
        if isinstance(parameter, click.Option):
            long = next((opt for opt in parameter.opts if opt.startswith("--")), parameter.opts[0])
            for name in (parameter.name, long.removeprefix("--").replace("-", "_")):
                if name is not None:
                    found[name] = long
    for name, other in _ALIASES.items():
        if other in found:
            found.setdefault(name, found[other])
    return found
