"""What would be published: nothing that the registry's scanner flags, nothing that does not belong there, and small."""

import ast
import io
import re
import subprocess
import tokenize
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

ROOT = Path(__file__).resolve().parent.parent
TOP_LEVEL = {"__init__.py", "kernels", "locales", "nodes", "web", "workflows", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"}
LARGEST_TOTAL = 2_000_000
NETWORK = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "requests",
    "smtplib",
    "socket",
    "ssl",
    "telnetlib",
    "urllib",
    "urllib3",
    "websocket",
    "websockets",
}
PROCESSES = {"subprocess", "multiprocessing", "pty", "ctypes"}
SERIALIZERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
MEMBERS = {"os": re.compile("environ|getenv|putenv|system|popen|exec|spawn|fork"), "torch": re.compile("load$")}
DEVICE = re.compile(r"""\.cuda\(|\.to\(\s*(?:device\s*=\s*)?["']cuda""")


def published_files() -> list[Path]:
    """Tracked files that `.comfyignore` does not exclude, relative to the root."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ignored = GitIgnoreSpec.from_lines((ROOT / ".comfyignore").read_text().splitlines())
    return [Path(name) for name in listed.split("\0") if name and not ignored.match_file(name) and (ROOT / name).is_file()]


def violations(source: str) -> list[str]:
    """What a scanner or a reviewer would stop in one Python file, as "line: what"."""
    found = []
    if stray := {character for character in source if not _in_cp1252(character)}:
        found.append(f"0: characters outside cp1252: {sorted(stray)}")
    found += [f"{number}: fixed device" for number, line in enumerate(source.splitlines(), 1) if DEVICE.search(line)]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found += [f"{token.start[0]}: two statements on a line" for token in tokens if token.string == ";" and token.type == tokenize.OP]

    tree = ast.parse(source)
    modules = {}  # local name -> module
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                found += _banned_import(node.lineno, name.name)
                modules[name.asname or name.name.split(".")[0]] = name.name if name.asname else name.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += _banned_import(node.lineno, node.module)
            for name in node.names:
                found += _banned_member(node.lineno, node.module, name.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += _banned_member(node.lineno, modules.get(node.value.id, ""), node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            found.append(f"{node.lineno}: {node.func.id}()")
    return found


def _in_cp1252(character: str) -> bool:
    return character.encode("cp1252", "ignore") != b""


def _banned_import(line: int, module: str) -> list[str]:
    return [f"{line}: import of {module}"] if module.split(".")[0] in NETWORK | PROCESSES | SERIALIZERS else []


def _banned_member(line: int, module: str, member: str) -> list[str]:
    banned = MEMBERS.get(module)
    return [f"{line}: {module}.{member}"] if banned is not None and banned.match(member) else []


@pytest.mark.parametrize("path", [path for path in published_files() if path.suffix == ".py"], ids=str)
def test_nothing_in_shipped_python_is_flagged(path):
    assert violations((ROOT / path).read_text(encoding="utf-8")) == []


def test_only_what_belongs_there_is_published():
    files = published_files()
    assert {path.parts[0] for path in files} <= TOP_LEVEL
    allowed = {
        "kernels": {".py"},
        "locales": {".json"},
        "nodes": {".py"},
        "web": {".js", ".css", ".md", ".jpg", ".png", ".webp"},
        "workflows": {".json", ".jpg"},
    }
    assert [str(path) for path in files if path.suffix not in allowed.get(path.parts[0], {path.suffix})] == []


def test_what_the_registry_and_comfyui_need_is_published():
    assert {"__init__.py", "pyproject.toml", "requirements.txt", "LICENSE"} <= {str(path) for path in published_files()}


def test_the_archive_is_small():
    assert sum((ROOT / path).stat().st_size for path in published_files()) <= LARGEST_TOTAL


def test_installing_the_pack_leaves_torch_alone():
    required = (ROOT / "requirements.txt").read_text() + (ROOT / "pyproject.toml").read_text().split("[tool.pytest")[0]
    assert not re.search(r"^\s*\"?(torch|triton|torchvision|torchaudio)\b|[\[,]\s*\"(torch|triton)\b", required, re.MULTILINE)


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import os\nx = os.environ['HOME']", "os.environ"),
        ("import os as system\nsystem.getenv('HOME')", "os.getenv"),
        ("import os.path\nos.environ", "os.environ"),
        ("from os import environ", "os.environ"),
        ("import os\nos.system('ls')", "os.system"),
        ("def f():\n    import subprocess", "import of subprocess"),
        ("from urllib.request import urlopen", "import of urllib.request"),
        ("import requests", "import of requests"),
        ("import pickle", "import of pickle"),
        ("import torch\ntorch.load('x')", "torch.load"),
        ("from torch import load", "torch.load"),
        ("eval('1')", "eval()"),
        ("exec('1')", "exec()"),
        ("x = 1; y = 2", "two statements"),
        ("# \u2248 1.5", "cp1252"),
        ("x.cuda()", "fixed device"),
        ("x.to('cuda:0')", "fixed device"),
    ],
)
def test_planted_violations_are_found(source, what):
    assert len(violations(source)) == 1 and what in violations(source)[0]


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos.path.join('a', 'b')",
        "model.eval()",
        "import torch\ntorch.compiler.disable(f)",
        '"""Mentions os.environ, pickle and eval() in words; and costs nothing."""',
        "from . import http",
        "x.to(device)",
        "state.load('x')",
    ],
)
def test_harmless_code_is_not_flagged(source):
    assert violations(source) == []
